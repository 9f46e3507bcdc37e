//! Values with units, as flags, the environment and configuration files spell them.

use std::time::Duration;

/// Stands for "for ever": far beyond the life of a mount, and safe to add to any clock.
pub const INDEFINITE: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
/// What `minimal` means: listings stay usable for the lookups that follow them.
pub const MINIMAL: Duration = Duration::from_millis(100);

/// A size in bytes. A number alone is MiB; units are `B`, `K`, `M`, `G`, `T`, with or without
/// `B` or `iB` behind them, all powers of 1024.
pub fn size(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("{text:?} is no size; write it like 512M or 4GiB (a number alone is MiB)");
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let unit = unit.to_ascii_lowercase();
    let shift = match unit
        .strip_suffix("ib")
        .or(unit.strip_suffix('b'))
        .unwrap_or(&unit)
    {
        "" if unit == "b" => 0,
        "" if unit.is_empty() => 20,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(wrong()),
    };
    let bytes = number * f64::from(2u32).powi(shift);
    if bytes >= u64::MAX as f64 {
        return Err(format!("{text:?} is too large a size"));
    }
    Ok(bytes as u64)
}

/// A duration. A number alone is seconds; units are `ms`, `s`, `m`, `h` and `d`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || {
        format!("{text:?} is no duration; write it like 2, 500ms or 5m (a number alone is seconds)")
    };
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let seconds = number
        * match unit {
            "ms" => 0.001,
            "" | "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return Err(wrong()),
        };
    Ok(Duration::try_from_secs_f64(seconds)
        .unwrap_or(INDEFINITE)
        .min(INDEFINITE))
}

/// How long something is believed: a duration, `minimal` or `indefinite`.
pub fn time_to_live(text: &str) -> Result<Duration, String> {
    match text {
        "minimal" => Ok(MINIMAL),
        "indefinite" => Ok(INDEFINITE),
        _ => duration(text).map_err(|why| format!("{why}, or minimal or indefinite")),
    }
}

/// Permission bits, octal as `chmod` takes them.
pub fn mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text.strip_prefix("0o").unwrap_or(text), 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| format!("{text:?} is no mode; write it in octal, like 644"))
}

/// A whole number.
pub fn number<N: std::str::FromStr>(text: &str) -> Result<N, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is not a whole number in range"))
}

/// A switch.
pub fn switch(text: &str) -> Result<bool, String> {
    match text {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

/// One of several words.
pub fn choice<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    words
        .iter()
        .find(|(word, _)| *word == text)
        .map(|(_, value)| *value)
        .ok_or_else(|| {
            let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            format!("{text:?} is not one of {}", words.join(", "))
        })
}

/// Splits a number that is not negative from its unit.
fn split(text: &str) -> Option<(f64, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    Some((number, text[end..].trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("64", 64 << 20),
            ("64M", 64 << 20),
            ("64MiB", 64 << 20),
            ("64mb", 64 << 20),
            ("1GiB", 1 << 30),
            ("1.5k", 1536),
            ("100B", 100),
            ("0", 0),
            ("2 T", 2 << 40),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "-1", "1X", "1iB", "1e30", "99999999999T", "1.2.3"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, milliseconds) in [
            ("1", 1000),
            ("0", 0),
            ("0.5", 500),
            ("500ms", 500),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("1d", 86_400_000),
        ] {
            assert_eq!(
                duration(text),
                Ok(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for text in ["", "s", "-1", "1 week", "ms", "minimal"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!(time_to_live("minimal"), Ok(MINIMAL));
        assert_eq!(time_to_live("indefinite"), Ok(INDEFINITE));
        assert_eq!(duration("99999999999999999999d"), Ok(INDEFINITE));
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(mode("644"), Ok(0o644));
        assert_eq!(mode("0755"), Ok(0o755));
        assert_eq!(mode("0o600"), Ok(0o600));
        for text in ["", "9", "rw", "17777", "-1"] {
            assert!(mode(text).is_err(), "{text}");
        }
    }
}
