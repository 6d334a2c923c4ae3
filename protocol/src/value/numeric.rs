//! The image of `numeric`: a header of two or four bytes, then digits to the base of 10,000.
//!
//! The first two bytes tell which header it is. Bits 15 and 14: `11` a special value (NaN or an infinity, nothing
//! follows), `10` a short header (sign, scale and weight in these two bytes), `00` and `01` a long one (sign and scale
//! here, the weight in two more). The value is the sum of digit `i` times 10,000 to the power of `weight - i`; the
//! scale says how many decimal digits are shown after the point.

use std::fmt;

const SHORT: u16 = 0x8000;
const SPECIAL: u16 = 0xC000;
const DIGIT_BYTES: usize = 2;
/// Decimal digits in one digit of the image.
const DECIMALS: usize = 4;

/// A value that is no number, or the sign of one that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Not a number.
    NaN,
    /// Greater than all numbers.
    Infinity,
    /// Less than all numbers.
    MinusInfinity,
    /// A number.
    Finite {
        /// Whether it is below zero.
        negative: bool,
    },
}

/// A valid image, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts<'a> {
    /// What kind of value it is.
    pub class: Class,
    /// Power of 10,000 of the first digit.
    pub weight: i16,
    /// Decimal digits shown after the point.
    pub scale: u16,
    /// The digits, two bytes each.
    digits: &'a [u8],
}

impl<'a> Parts<'a> {
    /// Reads and checks an image.
    ///
    /// The form must be the normal one, as PostgreSQL's `make_result` leaves it: no zero digit at either end, zero
    /// without digits, sign and weight, and no digits hidden beyond the scale.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, &'static str> {
        let Some((&header, rest)) = bytes.split_first_chunk::<2>() else {
            return Err("shorter than its header");
        };
        let header = u16::from_le_bytes(header);
        let (negative, scale, weight, digits) = match header & SPECIAL {
            SPECIAL => return Self::special(header, rest),
            SHORT => {
                // Seven bits of weight, the highest of them its sign.
                let weight = ((header << 9).cast_signed()) >> 9;
                (header & 0x2000 != 0, (header >> 7) & 0x3F, weight, rest)
            }
            sign => {
                let Some((&weight, digits)) = rest.split_first_chunk::<2>() else {
                    return Err("shorter than its header");
                };
                (sign != 0, header & 0x3FFF, i16::from_le_bytes(weight), digits)
            }
        };
        let parts = Self { class: Class::Finite { negative }, weight, scale, digits };
        parts.check_digits(negative)?;
        Ok(parts)
    }

    fn special(header: u16, rest: &[u8]) -> Result<Self, &'static str> {
        if !rest.is_empty() {
            return Err("special value has digits");
        }
        let class = match header {
            0xC000 => Class::NaN,
            0xD000 => Class::Infinity,
            0xF000 => Class::MinusInfinity,
            _ => return Err("unknown special value"),
        };
        Ok(Self { class, weight: 0, scale: 0, digits: &[] })
    }

    fn check_digits(&self, negative: bool) -> Result<(), &'static str> {
        let (digits, odd) = self.digits.as_chunks::<DIGIT_BYTES>();
        if !odd.is_empty() {
            return Err("half a digit at its end");
        }
        if digits.iter().any(|digit| u16::from_le_bytes(*digit) > 9999) {
            return Err("digit beyond 9999");
        }
        let (Some(first), Some(last)) = (digits.first(), digits.last()) else {
            return if negative || self.weight != 0 { Err("zero with a sign or a weight") } else { Ok(()) };
        };
        if *first == [0, 0] || *last == [0, 0] {
            return Err("not in normal form");
        }
        // How many decimal digits stand after the point, the zeros at the end of the last digit left out.
        let mut shown = (digits.len() as i64 - 1 - i64::from(self.weight)) * DECIMALS as i64;
        let mut last = u16::from_le_bytes(*last);
        while last.is_multiple_of(10) {
            last /= 10;
            shown -= 1;
        }
        if shown > i64::from(self.scale) { Err("digits beyond its scale") } else { Ok(()) }
    }

    /// Length of the text at most.
    pub(crate) fn text_len(&self) -> usize {
        let integer = usize::try_from(i32::from(self.weight) + 1).unwrap_or(0).max(1) * DECIMALS;
        integer + usize::from(self.scale) + 2
    }

    /// The digit whose power of 10,000 is `power`.
    fn digit(&self, power: i32) -> u16 {
        usize::try_from(i32::from(self.weight) - power)
            .ok()
            .and_then(|index| self.digits.as_chunks::<DIGIT_BYTES>().0.get(index))
            .map_or(0, |digit| u16::from_le_bytes(*digit))
    }
}

impl fmt::Display for Parts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.class {
            Class::NaN => return f.write_str("NaN"),
            Class::Infinity => return f.write_str("Infinity"),
            Class::MinusInfinity => return f.write_str("-Infinity"),
            Class::Finite { negative: true } => f.write_str("-")?,
            Class::Finite { negative: false } => {}
        }
        let top = i32::from(self.weight).max(0);
        write!(f, "{}", self.digit(top))?;
        for power in (0..top).rev() {
            write!(f, "{:04}", self.digit(power))?;
        }
        let mut left = usize::from(self.scale);
        if left > 0 {
            f.write_str(".")?;
        }
        let mut power = -1;
        while left > 0 {
            let decimals = format!("{:04}", self.digit(power));
            let shown = left.min(DECIMALS);
            f.write_str(&decimals[..shown])?;
            left -= shown;
            power -= 1;
        }
        Ok(())
    }
}
