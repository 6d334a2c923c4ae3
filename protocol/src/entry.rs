//! What a transaction's body is made of.
//!
//! A body is a sequence of frames: the length of an entry as a little-endian `u32`, then the [`Entry`] in bincode.
//! A transaction describes each relation and origin before the first change that refers to it, so it can be applied
//! with no knowledge of what came before.

use bincode::de::BorrowDecoder;
use bincode::de::read::BorrowReader;
use bincode::enc::Encoder;
use bincode::error::{DecodeError as BincodeDecodeError, EncodeError};
use bincode::{BorrowDecode, Decode, Encode};

use crate::codec::{CONFIG, DecodeError};
use crate::version::Timestamp;

/// PostgreSQL's limit of columns in a table, and so of values in a row.
pub const MAX_COLUMNS: usize = 1600;

/// How the bytes of a column's values are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Format {
    /// The type's own in-memory image without a varlena header, little-endian. Only the types in [`crate::value`].
    Raw,
    /// The type's text output under ISO date style and an empty search path, in UTF-8.
    Text,
}

/// A column as the sender has it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Column {
    /// The column's name; the receiver matches by it alone.
    pub name: String,
    /// Schema of the column's type, `None` for `pg_catalog`. A domain counts as the type below it.
    pub type_schema: Option<String>,
    /// Name of the column's type, e.g. `int4`, `_text` for an array of text.
    pub type_name: String,
    /// The type's modifier (`atttypmod`), -1 for none.
    pub type_modifier: i32,
    /// How this column's values are encoded.
    pub format: Format,
}

/// How a table decides between two writes of one row.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Resolution {
    /// The later version wins as a whole row.
    LastUpdateWins,
    /// The later version wins column by column.
    ColumnMerge,
    /// A function of the user's, by its qualified name.
    Function(String),
}

impl Resolution {
    /// Its name in SQL: the function's own for a function.
    pub fn name(&self) -> &str {
        match self {
            Self::LastUpdateWins => "last_update_wins",
            Self::ColumnMerge => "column_merge",
            Self::Function(name) => name,
        }
    }
}

/// A table as the sender has it: what is needed to read the rows that follow.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Relation {
    /// What changes refer to it by, within this transaction. A second descriptor with the same id replaces the first
    /// (the table was altered in the middle of the transaction).
    pub id: u32,
    /// The table's schema. A partition is described under the name of its root.
    pub schema: String,
    /// The table's name.
    pub name: String,
    /// The columns, in the order in which rows carry their values.
    pub columns: Vec<Column>,
    /// Which columns are the key, as indexes into `columns`, in the key's order.
    pub key: Vec<u16>,
    /// How the sender decides conflicts of this table.
    pub resolution: Resolution,
    /// Which columns are counters whose changes add up, as indexes into `columns`.
    pub delta_columns: Vec<u16>,
}

/// A node that this transaction refers to by number. Number 0 is the sender itself and needs no entry.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Origin {
    /// What [`Replaced::Version`] refers to it by.
    pub id: u32,
    /// The node's name.
    pub name: String,
}

/// The version of the row that a change replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Replaced {
    /// There was no row.
    Nothing,
    /// A row that this very transaction had written.
    SameTransaction,
    /// A row whose commit timestamp is gone: older than any version.
    Ancient,
    /// A row with this version.
    Version {
        /// When it was committed.
        commit_ts: Timestamp,
        /// Where, as the id of an [`Origin`]; 0 is the sender.
        origin: u32,
    },
}

/// The values of a row or of a key: `None` is NULL, bytes are in the column's [`Format`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Row<'a>(pub Vec<Option<&'a [u8]>>);

/// What an addition to a counter was.
#[derive(Debug, Clone, PartialEq, Eq, Encode, BorrowDecode)]
pub struct Contribution<'a> {
    /// The column, as an index into the relation's columns.
    pub column: u16,
    /// What was added, as the text of a `numeric`.
    pub amount: &'a str,
}

/// Whether a row was inserted or updated. The receiver decides by versions; this is for people and for triggers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum PutKind {
    /// INSERT, or the new half of an UPDATE that changed the key.
    Insert,
    /// UPDATE that kept the key.
    Update,
}

/// A row as it is after an INSERT or UPDATE.
#[derive(Debug, Clone, PartialEq, Eq, Encode, BorrowDecode)]
pub struct Put<'a> {
    /// The relation's id.
    pub relation: u32,
    /// Whether it was an INSERT or an UPDATE.
    pub kind: PutKind,
    /// What it replaced.
    pub replaced: Replaced,
    /// Which columns an UPDATE changed: bit `i % 8` of byte `i / 8` for column `i`. Empty for an INSERT.
    pub changed: &'a [u8],
    /// What it added to counters. Empty in a table without delta columns.
    pub contributions: Vec<Contribution<'a>>,
    /// The whole new row, all columns of the relation.
    pub row: Row<'a>,
}

/// A row that is gone.
#[derive(Debug, Clone, PartialEq, Eq, Encode, BorrowDecode)]
pub struct Delete<'a> {
    /// The relation's id.
    pub relation: u32,
    /// What was deleted.
    pub replaced: Replaced,
    /// What the delete took from counters. Empty in a table without delta columns.
    pub contributions: Vec<Contribution<'a>>,
    /// The key, in the order of the relation's `key`.
    pub key: Row<'a>,
}

/// A table that was emptied.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Truncate {
    /// The relation's id. Several tables of one statement follow each other.
    pub relation: u32,
    /// Whether its sequences were restarted.
    pub restart_identity: bool,
}

/// One entry of a transaction's body.
#[derive(Debug, Clone, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Entry<'a> {
    /// Describes a table.
    Relation(Relation),
    /// Names another node.
    Origin(Origin),
    /// A row written.
    Put(Put<'a>),
    /// A row deleted. An UPDATE that changes the key is a `Delete` of the old key and a `Put` of the new row.
    Delete(Delete<'a>),
    /// A table emptied.
    Truncate(Truncate),
}

impl Relation {
    /// The id of the relation that a frame describes or changes, without decoding the rest.
    ///
    /// # Errors
    /// [`DecodeError::Malformed`] if the bytes are no relation.
    pub fn id_in_frame(frame: &[u8]) -> Result<u32, DecodeError> {
        bincode::decode_from_slice::<(u32, u32), _>(frame, CONFIG)
            .map(|((_, id), _)| id)
            .map_err(DecodeError::malformed("relation"))
    }
}

impl<'a> Entry<'a> {
    /// Whether a frame holds a change: no descriptor of a table or a node.
    pub fn is_change(frame: &[u8]) -> bool {
        frame.first().is_some_and(|&variant| variant > 1)
    }

    /// Whether a frame holds an [`Entry::Truncate`], without decoding it.
    pub fn is_truncate(frame: &[u8]) -> bool {
        frame.first() == Some(&4)
    }

    /// Whether a frame holds an [`Entry::Relation`], without decoding it.
    pub fn is_relation(frame: &[u8]) -> bool {
        // bincode writes the first variant's number as one zero byte.
        frame.first() == Some(&0)
    }

    /// Reads one entry from the content of a frame.
    ///
    /// # Errors
    /// [`DecodeError::Malformed`] if the bytes are not an entry, [`DecodeError::Length`] if some are left over,
    /// [`DecodeError::Inconsistent`] for a descriptor that contradicts itself.
    pub fn decode(frame: &'a [u8]) -> Result<Self, DecodeError> {
        let (entry, used) =
            bincode::borrow_decode_from_slice::<Self, _>(frame, CONFIG).map_err(DecodeError::malformed("entry"))?;
        if used != frame.len() {
            return Err(DecodeError::Length("entry does not fill its frame"));
        }
        match &entry {
            Self::Relation(relation) => relation.validate()?,
            Self::Origin(origin) if origin.id == 0 => {
                return Err(DecodeError::Inconsistent("number 0 is the sender and cannot be another origin"));
            }
            _ => {}
        }
        Ok(entry)
    }
}

impl Relation {
    /// Makes sure that the indexes are those of columns and that names can be names, so that readers need not.
    fn validate(&self) -> Result<(), DecodeError> {
        if self.columns.len() > MAX_COLUMNS {
            return Err(DecodeError::Inconsistent("relation has more columns than a table may have"));
        }
        let is_column = |index: &u16| usize::from(*index) < self.columns.len();
        if !self.key.iter().chain(&self.delta_columns).all(is_column) {
            return Err(DecodeError::Inconsistent("relation refers to a column that it has not"));
        }
        let of_columns = |column: &Column| is_name(&column.name) && is_name(&column.type_name);
        if ![&self.schema, &self.name].into_iter().all(|name| is_name(name)) || !self.columns.iter().all(of_columns) {
            return Err(DecodeError::Inconsistent("relation has a name that PostgreSQL would not take"));
        }
        Ok(())
    }
}

/// Not empty and without NUL. How long a name may be is for the receiver, where that is a matter of how it was built.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains('\0')
}

impl Encode for Row<'_> {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        (self.0.len() as u64).encode(encoder)?;
        for value in &self.0 {
            value.encode(encoder)?;
        }
        Ok(())
    }
}

impl<'de, C> BorrowDecode<'de, C> for Row<'de> {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(decoder: &mut D) -> Result<Self, BincodeDecodeError> {
        let count = u64::decode(decoder)?;
        if count > MAX_COLUMNS as u64 {
            return Err(BincodeDecodeError::Other("row has more values than a table may have columns"));
        }
        // The values are borrowed: only the list itself is allocated, and the count is checked above. bincode's own
        // limit would count the borrowed bytes too, and a value may be a gigabyte.
        let mut values = Vec::with_capacity(count as usize);
        for _ in 0..count {
            values.push(match u8::decode(decoder)? {
                0 => None,
                1 => {
                    let len = u64::decode(decoder)?;
                    let len = usize::try_from(len).map_err(|_| BincodeDecodeError::OutsideUsizeRange(len))?;
                    Some(decoder.borrow_reader().take_bytes(len)?)
                }
                found => {
                    return Err(BincodeDecodeError::UnexpectedVariant {
                        type_name: "Option",
                        allowed: &bincode::error::AllowedEnumVariants::Range { min: 0, max: 1 },
                        found: u32::from(found),
                    });
                }
            });
        }
        Ok(Self(values))
    }
}
