//! Enums whose variants have names on a command line.

/// Defines an enum from its variants with their names: `ALL` of them, in this order, `name` and
/// `from_name`.
#[macro_export]
macro_rules! named {
    (
        $(#[$about:meta])* $enum:ident:
        $($(#[$doc:meta])* $name:ident = $text:literal),+ $(,)?
    ) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $enum { $($(#[$doc])* $name),+ }

        impl $enum {
            /// All of them, in order.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// Its name on a command line.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }

            /// The one of this name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.name() == name)
            }
        }
    };
}
