//! From values to pixels, and where the ticks are.

/// A straight or logarithmic scale.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    from: f64,
    to: f64,
    start: f64,
    end: f64,
    log: bool,
}

impl Scale {
    /// `from` is at the pixel `start`, `to` at `end`.
    pub(super) fn linear(from: f64, to: f64, start: f64, end: f64) -> Self {
        Self {
            from,
            to,
            start,
            end,
            log: false,
        }
    }

    /// As [`Scale::linear`], by powers of ten. Both ends are above 0.
    pub(super) fn log(from: f64, to: f64, start: f64, end: f64) -> Self {
        Self {
            from: from.log10(),
            to: to.log10(),
            start,
            end,
            log: true,
        }
    }

    /// The pixel of a value.
    pub(super) fn place(&self, value: f64) -> f64 {
        let value = if self.log {
            value.max(1e-9).log10()
        } else {
            value
        };
        let span = self.to - self.from;
        let part = if span > 0.0 {
            (value - self.from) / span
        } else {
            0.0
        };
        self.start + part.clamp(0.0, 1.0) * (self.end - self.start)
    }
}

/// Round values from `first` to `last`, about `count` of them, with their texts.
pub(super) fn ticks(first: f64, last: f64, count: u32) -> Vec<(f64, String)> {
    let rough = (last - first).max(1e-9) / f64::from(count.max(1));
    let power = 10f64.powf(rough.log10().floor());
    let round = [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power);
    let step = round
        .into_iter()
        .find(|step| *step >= rough)
        .unwrap_or(rough);
    let digits = (-step.log10().floor()).max(0.0) as usize;
    let from = (first / step).ceil() as i64;
    let to = (last / step + 1e-9).floor() as i64;
    (from..=to)
        .map(|number| {
            let value = number as f64 * step;
            (value, format!("{value:.digits$}"))
        })
        .collect()
}

/// Powers of ten of milliseconds that hold `least` and `most`.
pub(super) fn decades(least: f64, most: f64) -> Vec<(f64, String)> {
    let from = least.max(1e-3).log10().floor() as i32;
    let to = most.max(1e-3).log10().ceil() as i32;
    (from..=to.max(from + 1))
        .map(|power| {
            let value = 10f64.powi(power);
            let digits = usize::try_from(-power).unwrap_or(0);
            (value, format!("{value:.digits$}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        let texts = |first, last| -> Vec<String> {
            ticks(first, last, 5)
                .into_iter()
                .map(|(_, text)| text)
                .collect()
        };
        assert_eq!(texts(-1.0, 4.0), ["-1", "0", "1", "2", "3", "4"]);
        assert_eq!(texts(0.0, 0.9), ["0.0", "0.2", "0.4", "0.6", "0.8"]);
        assert_eq!(texts(0.0, 4_200.0), ["0", "1000", "2000", "3000", "4000"]);
        let decades: Vec<f64> = decades(0.3, 840.0)
            .into_iter()
            .map(|(value, _)| value)
            .collect();
        assert_eq!(decades, [0.1, 1.0, 10.0, 100.0, 1_000.0]);
    }

    #[test]
    fn a_value_stays_within_its_scale() {
        let scale = Scale::log(0.1, 1_000.0, 100.0, 0.0);
        assert_eq!(scale.place(0.1), 100.0);
        assert_eq!(scale.place(10.0), 50.0);
        assert_eq!(scale.place(1e9), 0.0);
        assert_eq!(Scale::linear(1.0, 1.0, 7.0, 9.0).place(3.0), 7.0);
    }
}
