//! What numbers of JSON amount to, to the last digit, whatever their spelling.

use std::cmp::Ordering;

/// The amount of a number: `0.DIGITS` times ten to some power. Each amount has one form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Decimal {
    negative: bool,
    /// Without zeros at either end. Zero has none, nor a sign, nor a power.
    digits: String,
    power: i64,
}

/// Whether a number is written without a point and a power of ten.
pub(super) fn is_whole(text: &str) -> bool {
    !text.contains(['.', 'e', 'E'])
}

/// Whether two texts of numbers amount to the same.
pub(super) fn same(a: &str, b: &str) -> bool {
    a == b || matches!((Decimal::of(a), Decimal::of(b)), (Some(a), Some(b)) if a == b)
}

impl Decimal {
    /// The amount of a text that is a number in JSON; none where the power is out of all bounds.
    pub(super) fn of(text: &str) -> Option<Decimal> {
        let (negative, text) = match text.strip_prefix('-') {
            Some(text) => (true, text),
            None => (false, text),
        };
        let (amount, power) = match text.split_once(['e', 'E']) {
            Some((amount, power)) => (amount, power.parse::<i64>().ok()),
            None => (text, Some(0)),
        };
        let (whole, fraction) = amount.split_once('.').unwrap_or((amount, ""));
        let all = [whole, fraction].concat();
        let significant = all.trim_start_matches('0');
        let digits = significant.trim_end_matches('0');
        if digits.is_empty() {
            return Some(Decimal {
                negative: false,
                digits: String::new(),
                power: 0,
            });
        }
        // Where the first digit that counts stands before or behind the point.
        let leading = (all.len() - significant.len()) as i64;
        let before = whole.len() as i64 - leading;
        Some(Decimal {
            negative,
            power: power?.checked_add(before)?,
            digits: digits.to_owned(),
        })
    }

    /// The number that it is, if that is a whole one of 64 bits.
    pub(super) fn whole(&self) -> Option<i64> {
        let zeros = match i64::try_from(self.digits.len()).ok()?.cmp(&self.power) {
            Ordering::Greater => return None,
            _ if self.power > 19 => return None,
            _ => self.power as usize - self.digits.len(),
        };
        let sign = if self.negative { "-" } else { "" };
        let digits = if self.digits.is_empty() {
            "0"
        } else {
            &self.digits
        };
        format!("{sign}{digits}{}", "0".repeat(zeros)).parse().ok()
    }

    /// The one spelling of the amount.
    pub(super) fn spelled(&self) -> String {
        let sign = if self.negative { "-" } else { "" };
        format!("{sign}0.{}e{}", self.digits, self.power)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_amount_are_the_same() {
        for (a, b, wanted) in [
            ("1", "1.0", true),
            ("1", "1e0", true),
            ("10", "0.1E+2", true),
            ("0.001", "1e-3", true),
            ("-0", "0.0e5", true),
            ("0e99999999999999999999", "0", true),
            ("-1", "1", false),
            ("12345678901234567890", "12345678901234567890.00", true),
            ("12345678901234567890", "12345678901234567891", false),
            ("12345678901234567890", "1.2345678901234567e19", false),
            ("12345678901234567000", "1.2345678901234567e19", true),
            ("1e99999999999999999999", "1e99999999999999999999", true),
            ("1e99999999999999999999", "1e99999999999999999998", false),
            ("1e999", "1e998", false),
        ] {
            assert_eq!(same(a, b), wanted, "{a} {b}");
        }
    }

    #[test]
    fn whole_numbers_are_told() {
        for (text, wanted) in [
            ("0.0", Some(0)),
            ("-12e2", Some(-1200)),
            ("9007199254740993.0", Some(9_007_199_254_740_993)),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("1.5", None),
            ("1e-1", None),
            ("1e999999", None),
        ] {
            let amount = Decimal::of(text).expect(text);
            assert_eq!(amount.whole(), wanted, "{text}");
        }
    }
}
