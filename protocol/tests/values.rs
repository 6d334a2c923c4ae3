//! Raw images: what PostgreSQL wrote is accepted and shown as PostgreSQL shows it, and nothing else is accepted.

use duplex_protocol::value::{RawType, check, to_text};
use proptest::prelude::*;

struct Vector {
    type_name: &'static str,
    text: String,
    image: Vec<u8>,
}

fn unhex(digits: &str) -> Vec<u8> {
    (0..digits.len()).step_by(2).map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap()).collect()
}

fn vectors() -> Vec<Vector> {
    include_str!("vectors/values.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let mut fields = line.split('\t');
            let mut next = || fields.next().unwrap();
            Vector { type_name: next(), text: serde_json::from_str(next()).unwrap(), image: unhex(next()) }
        })
        .collect()
}

fn refused(type_name: &str, image: &str) -> String {
    let err = check(type_name, &unhex(image)).expect_err("must be refused");
    assert!(to_text(type_name, &unhex(image)).is_err(), "to_text must refuse what check refuses");
    err.to_string()
}

#[test]
fn postgresql_s_own_images_are_accepted_and_shown_as_it_shows_them() {
    let vectors = vectors();
    for raw in RawType::ALL {
        assert!(vectors.iter().any(|v| RawType::from_name(v.type_name) == Some(raw)), "no vector of {}", raw.name());
        assert_eq!(RawType::from_name(raw.name()), Some(raw));
    }
    for Vector { type_name, text, image } in vectors {
        check(type_name, &image).unwrap_or_else(|err| panic!("{type_name} {text}: {err}"));
        assert_eq!(to_text(type_name, &image).unwrap(), text, "{type_name}");
    }
}

/// Any image that differs in one byte is refused, or is another value of the type: never a panic, and where it is
/// accepted it has a text.
#[test]
fn an_image_with_one_byte_changed_is_refused_or_another_value() {
    for Vector { type_name, text, image } in vectors() {
        for i in 0..image.len() {
            for flip in [0x01, 0x04, 0x10, 0x40, 0x80, 0xff] {
                let mut changed = image.clone();
                changed[i] ^= flip;
                if check(type_name, &changed).is_ok() {
                    let shown = to_text(type_name, &changed).unwrap();
                    // NaN has many images, and in jsonb any entry may say its end rather than its length.
                    let alike = shown == "NaN" || (type_name == "jsonb" && flip == 0x80);
                    assert!(shown != text || alike, "{type_name} {text}: byte {i} means nothing");
                }
            }
            assert!(
                check(type_name, &image[..i]).is_err() || RawType::from_name(type_name).unwrap().fixed_len().is_none()
            );
        }
    }
}

#[test]
fn integers_and_their_like_have_one_length() {
    for raw in RawType::ALL {
        let Some(len) = raw.fixed_len() else { continue };
        for other in (0..=20).filter(|other| *other != len) {
            assert!(raw.check(&vec![0; other]).is_err(), "{} of {other} bytes", raw.name());
        }
    }
    assert!(refused("bool", "02").contains("neither true nor false"));
    assert!(check("xml", b"<a/>").is_err());
}

#[test]
fn text_is_utf_8_without_nul() {
    assert!(refused("text", "610062").contains("NUL"));
    assert!(refused("varchar", "ff").contains("UTF-8"));
    // A surrogate, which UTF-8 may not hold, and an overlong slash.
    assert!(refused("bpchar", "eda080").contains("UTF-8"));
    assert!(refused("text", "c0af").contains("UTF-8"));
    check("bytea", &[0, 255]).unwrap();
}

#[test]
fn dates_and_times_stay_in_their_range() {
    let date = |days: i32| check("date", &days.to_le_bytes());
    assert!(date(-2_451_545).is_ok() && date(-2_451_546).is_err());
    assert!(date(2_145_031_948).is_ok() && date(2_145_031_949).is_err());
    let timestamp = |micros: i64| check("timestamptz", &micros.to_le_bytes());
    assert!(timestamp(-211_813_488_000_000_000).is_ok() && timestamp(-211_813_488_000_000_001).is_err());
    assert!(timestamp(9_223_371_331_199_999_999).is_ok() && timestamp(9_223_371_331_200_000_000).is_err());
    let time = |micros: i64| check("time", &micros.to_le_bytes());
    assert!(time(86_400_000_000).is_ok() && time(86_400_000_001).is_err() && time(-1).is_err());
    let zone = |seconds: i32| check("timetz", &[&[0; 8][..], &seconds.to_le_bytes()].concat());
    assert!(zone(57_599).is_ok() && zone(57_600).is_err() && zone(-57_600).is_err() && zone(i32::MIN).is_err());
}

/// PostgreSQL prints an interval of the least microseconds as hours that its own input refuses.
#[test]
fn the_least_interval_reads_back() {
    let image = [&i64::MIN.to_le_bytes()[..], &[1, 0, 0, 0, 0, 0, 0, 0]].concat();
    assert_eq!(to_text("interval", &image).unwrap(), "1 day -9223372036854775808 us");
}

#[test]
fn a_one_byte_char_beyond_ascii_is_octal() {
    assert_eq!(to_text("char", &[0xe9]).unwrap(), "\\351");
    assert_eq!(to_text("char", &[0]).unwrap(), "");
}

#[test]
fn numeric_must_be_in_normal_form() {
    for (image, reason) in [
        ("", "header"),
        ("80", "header"),
        ("0000", "header"),
        ("000000", "header"),
        ("008001", "half a digit"),
        ("00801027", "beyond 9999"),
        ("0080ffff", "beyond 9999"),
        ("008000000100", "normal form"),
        ("018001000000", "normal form"),
        ("0080", ""),
        ("00a0", "sign or a weight"),
        ("0180", "sign or a weight"),
        ("00c00100", "special"),
        ("00e0", "unknown special"),
        ("01c0", "unknown special"),
        ("7f800100", "beyond its scale"),
        ("808001000a00", "beyond its scale"),
        ("00000080", "sign or a weight"),
    ] {
        if reason.is_empty() {
            check("numeric", &unhex(image)).unwrap();
        } else {
            let message = refused("numeric", image);
            assert!(message.contains(reason), "{image}: {message}");
        }
    }
}

#[test]
fn a_long_header_is_accepted_where_a_short_one_would_do() {
    // Written by PostgreSQL 9.0 and kept by pg_upgrade.
    assert_eq!(to_text("numeric", &unhex("010000000c00881300")[..8]).unwrap(), "12.5");
}

#[test]
fn jsonb_that_would_mislead_postgresql_is_refused() {
    for (name, image, reason) in [
        ("empty", "", "shorter than its header"),
        ("no flag", "01000000", "neither"),
        ("both flags", "00000060", "neither"),
        ("unknown flag", "000000c0", "neither"),
        ("count beyond the image", "ffffff4f", "shorter than its entries"),
        ("pairs beyond the image", "ffffff2f", "shorter than its entries"),
        ("data left over", "0000004000", "do not fill"),
        ("entry beyond the data", "0100004005000000", "do not fill"),
        ("offset before the beginning", "02000040020000000100008061", "before it begins"),
        ("scalar of two", "020000500000000000000000", "neither"),
        ("scalar of an object", "010000500400005000000020", "scalar is a container"),
        ("scalar further down", "01000040080000500100005000000040", "neither"),
        ("unknown type", "0100004000000060", "unknown type"),
        ("unknown type", "0100004000000070", "unknown type"),
        ("null with data", "010000400100004061", "constant has data"),
        ("true with data", "010000400100003061", "constant has data"),
        ("key is a number", "010000200000004000000040", "key is not a string"),
        ("keys out of order", "020000200100000001000000000000400000004062 61", "order"),
        ("keys twice", "020000200100000001000000000000400000004061 61", "order"),
        ("longer key first", "0200002002000000010000000000004000000040616162", "order"),
        ("string with NUL", "010000500100000000", "NUL"),
        ("string not UTF-8", "0100005001000000ff", "UTF-8"),
        ("number without header", "01000050020000102000", "shorter than its header"),
        ("number with short header", "010000500400001009008001", "another length"),
        ("number longer than its entry", "010000500800001024000000008001 00", "another length"),
        ("compressed number", "010000500800001022000000008001 00", "another length"),
        ("number is NaN", "01000050060000101800000000c0", "not finite"),
        ("number not normal", "0100005008000010200000000080 0000", "normal form"),
        ("padding missing", "020000400100000002000010616161", "padding"),
        ("padding not zero", "020000400100000009000010 61 010000 18000000 0080", "padding is not zero"),
    ] {
        let mut image = image.replace(' ', "");
        if image.len() % 2 == 1 {
            image.push('0');
        }
        let message = refused("jsonb", &image);
        assert!(message.contains(reason), "{name}: {message}");
    }
}

/// Arrays, each the only element of the one before.
fn nested(depth: usize) -> Vec<u8> {
    let mut image = Vec::new();
    for inner in (0..depth - 1).rev() {
        image.extend_from_slice(&0x4000_0001_u32.to_le_bytes());
        image.extend_from_slice(&(0x5000_0000 | (8 * inner + 4) as u32).to_le_bytes());
    }
    image.extend_from_slice(&0x4000_0000_u32.to_le_bytes());
    image
}

#[test]
fn jsonb_nests_deep_but_not_without_end() {
    let limit = duplex_protocol::value::jsonb::MAX_DEPTH;
    assert_eq!(to_text("jsonb", &nested(3)).unwrap(), "[[[]]]");
    assert_eq!(to_text("jsonb", &nested(limit)).unwrap().len(), 2 * limit);
    assert!(check("jsonb", &nested(limit + 1)).unwrap_err().to_string().contains("too deep"));
}

/// A number of 131,072 digits has an image of six bytes, so a small forged image could ask for gigabytes of text.
#[test]
fn text_stays_in_proportion_to_the_image() {
    let numbers = 5000_u32;
    let number = unhex("280000000000ff7f0100");
    let mut image = (0x4000_0000 | numbers).to_le_bytes().to_vec();
    for i in 0..numbers {
        let padding = if i == 0 { 0 } else { 2 };
        image.extend_from_slice(&(0x1000_0000 | (number.len() as u32 + padding)).to_le_bytes());
    }
    for i in 0..numbers {
        image.extend_from_slice(if i == 0 { &[] } else { &[0, 0] });
        image.extend_from_slice(&number);
    }
    check("jsonb", &image).unwrap();
    assert!(to_text("jsonb", &image).unwrap_err().to_string().contains("proportion"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_refused_or_have_a_text(kind in 0..RawType::ALL.len(), bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let raw = RawType::ALL[kind];
        if raw.check(&bytes).is_ok() {
            raw.to_text(&bytes).unwrap();
        }
    }

    #[test]
    fn floats_read_back(bits: u64) {
        let float8 = f64::from_bits(bits);
        let text = to_text("float8", &bits.to_le_bytes()).unwrap();
        prop_assert!(float8.is_nan() || text.parse::<f64>().unwrap().to_bits() == bits);
        let float4 = f32::from_bits(bits as u32);
        let text = to_text("float4", &(bits as u32).to_le_bytes()).unwrap();
        prop_assert!(float4.is_nan() || text.parse::<f32>().unwrap().to_bits() == bits as u32);
    }
}
