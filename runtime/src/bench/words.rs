//! Figures as people read them: three digits and a unit.

use crate::summary::thousands;

/// A span of nanoseconds: `87 ns`, `1.20 ms`, `34.5 s`.
pub(crate) fn span(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..999_500 => digits(ns as f64 / 1e3, "us"),
        999_500..999_500_000 => digits(ns as f64 / 1e6, "ms"),
        _ => digits(ns as f64 / 1e9, "s"),
    }
}

/// A number of bytes, in powers of ten: `812 B`, `1.20 MB`.
pub(crate) fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..999_500 => digits(bytes as f64 / 1e3, "kB"),
        999_500..999_500_000 => digits(bytes as f64 / 1e6, "MB"),
        _ => digits(bytes as f64 / 1e9, "GB"),
    }
}

/// A number per second: `0.50`, `99.9`, `12,345`.
pub(super) fn rate(per_second: f64) -> String {
    if per_second < 99.95 {
        digits(per_second, "").trim_end().to_string()
    } else {
        thousands(per_second.round() as u64)
    }
}

fn digits(number: f64, unit: &str) -> String {
    let places = if number < 9.995 { 2 } else { usize::from(number < 99.95) };
    format!("{number:.places$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_a_unit() {
        let spans = [0, 999, 1_000, 9_994, 9_996, 123_456, 999_499, 999_500, 34_500_000_000, 3_600_000_000_000];
        let expected =
            ["0 ns", "999 ns", "1.00 us", "9.99 us", "10.0 us", "123 us", "999 us", "1.00 ms", "34.5 s", "3600 s"];
        assert_eq!(spans.map(span), expected);
        assert_eq!([5, 1_204_000, 999_600_000].map(bytes), ["5 B", "1.20 MB", "1.00 GB"]);
        assert_eq!([0.0, 0.5, 99.94, 99.96, 12_345.4].map(rate), ["0.00", "0.50", "99.9", "100", "12,345"]);
    }
}
