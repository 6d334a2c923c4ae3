//! The tables that the storm rages on, by what decides over their rows.

/// What decides over a table's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// The later version of a row wins.
    Rows,
    /// So it does, and delta columns count what any node adds.
    Counters,
    /// Each column goes by its own version.
    Columns,
}

/// All of them.
pub const POLICIES: &[Policy] = &[Policy::Rows, Policy::Counters, Policy::Columns];

/// Counters that are only ever added to, so that their sums are known without any stream.
pub const TALLIES: usize = 4;

/// A table; its key is the column `id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// What makes it and enables it.
    pub create: &'static str,
    /// A counter of whole numbers, which must come to the sum of all that was added.
    pub counter: Option<&'static str>,
}

const PLAIN: Table = Table {
    name: "s",
    create: "create table s (id int primary key, v text);
             select duplex.enable('s')",
    counter: None,
};

const UNIQUE: Table = Table {
    name: "u",
    create: "create table u (id int primary key, mail text unique, nick text);
             create unique index on u (lower(nick)) where id % 2 = 0;
             select duplex.enable('u')",
    counter: None,
};

const COUNTING: Table = Table {
    name: "c",
    create: "create table c (id int primary key, v text unique, n numeric(12, 2) not null, m bigint not null);
             select duplex.enable('c', delta_columns => '{n,m}')",
    counter: Some("m"),
};

const TALLY: Table = Table {
    name: "tally",
    create: "create table tally (id int primary key, n bigint not null);
             select duplex.enable('tally', delta_columns => '{n}')",
    counter: Some("n"),
};

const MERGING: Table = Table {
    name: "p",
    create: "create table p (id int primary key, n int not null, a text, b text);
             select duplex.enable('p', 'column_merge', '{n}')",
    counter: Some("n"),
};

const MERGING_UNIQUE: Table = Table {
    name: "q",
    create: "create table q (id int primary key, n int not null, v text unique, w text, c text, unique (w, c));
             create unique index on q (lower(w)) where n > 1000;
             select duplex.enable('q', 'column_merge')",
    counter: None,
};

impl Policy {
    /// Its tables.
    pub fn tables(self) -> [Table; 2] {
        match self {
            Self::Rows => [PLAIN, UNIQUE],
            Self::Counters => [COUNTING, TALLY],
            Self::Columns => [MERGING, MERGING_UNIQUE],
        }
    }
}
