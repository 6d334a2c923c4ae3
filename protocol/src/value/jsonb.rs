//! The image of `jsonb`: a tree of containers, as PostgreSQL's `jsonb.h` describes it.
//!
//! A container is a header (the number of its elements or pairs, and whether it is an array or an object), one
//! four-byte entry for each child (an object has its keys first, then its values), then the children's data. An entry
//! has a type and either the length of its child's data or, every now and then, the offset of its end. The data of
//! numbers and of inner containers begins at a multiple of four, with zero bytes before it. A scalar at the top is an
//! array of one element with a flag of its own.
//!
//! PostgreSQL's code trusts all of it, so [`check`] walks the whole tree. The walk keeps its own stack: nesting may
//! be deep, and the stack of a backend is not ours to exhaust.

use std::fmt::Write as _;

use super::numeric;

const COUNT: u32 = 0x0FFF_FFFF;
const SCALAR: u32 = 0x1000_0000;
const OBJECT: u32 = 0x2000_0000;
const ARRAY: u32 = 0x4000_0000;

const IS_OFFSET: u32 = 0x8000_0000;
const TYPE: u32 = 0x7000_0000;
const STRING: u32 = 0x0000_0000;
const NUMERIC: u32 = 0x1000_0000;
const FALSE: u32 = 0x2000_0000;
const TRUE: u32 = 0x3000_0000;
const NULL: u32 = 0x4000_0000;
const CONTAINER: u32 = 0x5000_0000;

/// How deep containers may nest. PostgreSQL's own limit is its stack: at the default `max_stack_depth` it refuses to
/// read 10,000 levels.
pub const MAX_DEPTH: usize = 16_384;

/// Text may be this much, and [`TEXT_TIMES`] the image's length. The only thing that comes near is a number of
/// thousands of zeros, which an image holds in ten bytes.
const TEXT_ALWAYS: usize = 1 << 20;
const TEXT_TIMES: usize = 16;

type Invalid = &'static str;

/// What a walk through a tree meets, in the order in which text shows it.
pub(crate) trait Visitor {
    fn begin(&mut self, object: bool) -> Result<(), Invalid>;
    fn end(&mut self, object: bool);
    fn key(&mut self, key: &str);
    fn string(&mut self, value: &str);
    fn number(&mut self, value: &numeric::Parts<'_>) -> Result<(), Invalid>;
    fn boolean(&mut self, value: bool);
    fn null(&mut self);
}

/// A container on the way down, and how far the walk has come in it.
struct Level<'a> {
    entries: &'a [[u8; 4]],
    data: &'a [u8],
    /// Number of keys: the entries before the first value. Zero in an array.
    keys: usize,
    object: bool,
    /// Elements or pairs visited.
    visited: usize,
    key_end: usize,
    value_end: usize,
    last_key: Option<&'a [u8]>,
}

impl<'a> Level<'a> {
    /// Reads a container's header and checks that its entries divide its data up without gap or overlap.
    fn open(bytes: &'a [u8], top: bool) -> Result<Self, Invalid> {
        let Some((header, rest)) = bytes.split_first_chunk::<4>() else {
            return Err("container is shorter than its header");
        };
        let header = u32::from_le_bytes(*header);
        let count = (header & COUNT) as usize;
        let (object, keys) = match header & !COUNT {
            ARRAY => (false, 0),
            OBJECT => (true, count),
            flags if flags == ARRAY | SCALAR && top && count == 1 => (false, 0),
            _ => return Err("container is neither an array nor an object"),
        };
        // At most 2^29 entries: no overflow.
        let Some((entries, data)) = rest.split_at_checked((count + keys) * 4) else {
            return Err("container is shorter than its entries");
        };
        let entries = entries.as_chunks::<4>().0;
        let mut end = 0;
        let mut value_end = 0;
        for (i, entry) in entries.iter().enumerate() {
            if i == keys {
                value_end = end;
            }
            end = advance(end, u32::from_le_bytes(*entry))?;
        }
        if end != data.len() {
            return Err("entries do not fill their container");
        }
        let level = Self { entries, data, keys, object, visited: 0, key_end: 0, value_end, last_key: None };
        if header & SCALAR != 0 && level.entry(0) & TYPE == CONTAINER {
            return Err("scalar is a container");
        }
        Ok(level)
    }

    fn entry(&self, index: usize) -> u32 {
        u32::from_le_bytes(self.entries[index])
    }

    fn next_key(&mut self) -> Result<&'a str, Invalid> {
        let entry = self.entry(self.visited);
        if entry & TYPE != STRING {
            return Err("key is not a string");
        }
        let start = self.key_end;
        self.key_end = advance(start, entry)?;
        let key = &self.data[start..self.key_end];
        // PostgreSQL finds a key by bisection: shorter ones first, those of one length by their bytes.
        if self.last_key.is_some_and(|last| (last.len(), last) >= (key.len(), key)) {
            return Err("keys are not in order");
        }
        self.last_key = Some(key);
        super::check_text(key)
    }

    /// Type and data of the next element or value. The data includes the padding before it, of a length that depends
    /// on where it begins in its container.
    fn next_value(&mut self) -> Result<(u32, Node<'a>), Invalid> {
        let entry = self.entry(self.keys + self.visited);
        let start = self.value_end;
        self.value_end = advance(start, entry)?;
        self.visited += 1;
        Ok((entry & TYPE, Node { data: &self.data[start..self.value_end], padding: start.wrapping_neg() % 4 }))
    }

    fn is_done(&self) -> bool {
        self.keys + self.visited == self.entries.len()
    }
}

struct Node<'a> {
    data: &'a [u8],
    padding: usize,
}

impl<'a> Node<'a> {
    fn aligned(&self) -> Result<&'a [u8], Invalid> {
        let Some((padding, data)) = self.data.split_at_checked(self.padding) else {
            return Err("padding is missing");
        };
        if padding.iter().any(|byte| *byte != 0) { Err("padding is not zero") } else { Ok(data) }
    }

    /// A number, which has a varlena header of its own (four bytes, length times four).
    fn number(&self) -> Result<numeric::Parts<'a>, Invalid> {
        let data = self.aligned()?;
        let Some((header, image)) = data.split_first_chunk::<4>() else {
            return Err("number is shorter than its header");
        };
        if u64::from(u32::from_le_bytes(*header)) != (data.len() as u64) << 2 {
            return Err("number has another length than its header says");
        }
        let parts = numeric::Parts::read(image)?;
        match parts.class {
            numeric::Class::Finite { .. } => Ok(parts),
            _ => Err("number is not finite"),
        }
    }
}

/// The end of a child's data, given where it begins. Ends that are beyond the container are found by its last one,
/// since none may be before its beginning.
fn advance(start: usize, entry: u32) -> Result<usize, Invalid> {
    let field = (entry & COUNT) as usize;
    if entry & IS_OFFSET == 0 {
        Ok(start + field)
    } else if field >= start {
        Ok(field)
    } else {
        Err("entry ends before it begins")
    }
}

/// Walks through a tree and checks all of it on the way. An error may come after parts have been visited.
pub(crate) fn walk(image: &[u8], visitor: &mut impl Visitor) -> Result<(), Invalid> {
    let top = Level::open(image, true)?;
    let scalar = u32::from_le_bytes(*image.first_chunk().ok_or("container is shorter than its header")?) & SCALAR != 0;
    if !scalar {
        visitor.begin(top.object)?;
    }
    let mut stack = vec![top];
    while let Some(level) = stack.last_mut() {
        if level.is_done() {
            let object = level.object;
            stack.pop();
            if !(scalar && stack.is_empty()) {
                visitor.end(object);
            }
            continue;
        }
        if level.object {
            let key = level.next_key()?;
            visitor.key(key);
        }
        let (kind, node) = level.next_value()?;
        match kind {
            STRING => visitor.string(super::check_text(node.data)?),
            NUMERIC => visitor.number(&node.number()?)?,
            CONTAINER => {
                if stack.len() == MAX_DEPTH {
                    return Err("nested too deep");
                }
                let inner = Level::open(node.aligned()?, false)?;
                visitor.begin(inner.object)?;
                stack.push(inner);
            }
            TRUE | FALSE | NULL if !node.data.is_empty() => return Err("constant has data"),
            NULL => visitor.null(),
            TRUE | FALSE => visitor.boolean(kind == TRUE),
            _ => return Err("unknown type of entry"),
        }
    }
    Ok(())
}

struct Nobody;

impl Visitor for Nobody {
    fn begin(&mut self, _: bool) -> Result<(), Invalid> {
        Ok(())
    }
    fn end(&mut self, _: bool) {}
    fn key(&mut self, _: &str) {}
    fn string(&mut self, _: &str) {}
    fn number(&mut self, _: &numeric::Parts<'_>) -> Result<(), Invalid> {
        Ok(())
    }
    fn boolean(&mut self, _: bool) {}
    fn null(&mut self) {}
}

pub(super) fn check(image: &[u8]) -> Result<(), Invalid> {
    walk(image, &mut Nobody)
}

/// Writes a tree as PostgreSQL does, with a space after each comma and colon.
struct Text {
    out: String,
    limit: usize,
    /// What stands before the next thing.
    separator: &'static str,
}

impl Text {
    fn scalar(&mut self, text: &str) {
        self.out.push_str(self.separator);
        self.out.push_str(text);
        self.separator = ", ";
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

impl Visitor for Text {
    fn begin(&mut self, object: bool) -> Result<(), Invalid> {
        self.out.push_str(self.separator);
        self.out.push(if object { '{' } else { '[' });
        self.separator = "";
        Ok(())
    }

    fn end(&mut self, object: bool) {
        self.out.push(if object { '}' } else { ']' });
        self.separator = ", ";
    }

    fn key(&mut self, key: &str) {
        self.scalar(&quoted(key));
        self.separator = ": ";
    }

    fn string(&mut self, value: &str) {
        self.scalar(&quoted(value));
    }

    fn number(&mut self, value: &numeric::Parts<'_>) -> Result<(), Invalid> {
        if self.out.len() + value.text_len() > self.limit {
            return Err("text would be out of all proportion");
        }
        self.out.push_str(self.separator);
        self.separator = ", ";
        write!(self.out, "{value}").map_err(|_| "number cannot be written")
    }

    fn boolean(&mut self, value: bool) {
        self.scalar(if value { "true" } else { "false" });
    }

    fn null(&mut self) {
        self.scalar("null");
    }
}

pub(super) fn to_text(image: &[u8]) -> Result<String, Invalid> {
    let limit = TEXT_ALWAYS + TEXT_TIMES * image.len();
    let mut text = Text { out: String::new(), limit, separator: "" };
    walk(image, &mut text)?;
    Ok(text.out)
}
