//! Authenticated envelopes over TCP and Unix sockets, polled.
