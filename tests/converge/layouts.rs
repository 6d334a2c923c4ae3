//! The tables that rounds are played on. All have the columns `id`, `v`, `w` and `n`; they differ in what must be unique
//! and in how rows are stored, which is where conflicts differ.

/// A kind of table.
#[derive(Debug)]
pub struct Layout {
    /// Its name in plans.
    pub name: &'static str,
    /// What makes it; `{t}` stands for the table's name.
    create: &'static str,
    /// The columns of its key.
    pub key: &'static [&'static str],
    /// Whether two rows may change their values of `v` in one statement.
    pub swaps: bool,
    /// Whether there is a table `{t}_child` that refers to it.
    pub child: bool,
    /// Whether values are so long that they are stored apart from their row.
    pub long: bool,
    /// Whether `n` is a delta column.
    pub counts: bool,
    /// Whether each column goes by its own version.
    pub merges: bool,
}

const PLAIN: Layout = Layout {
    name: "plain",
    create: "create table {t} (id int primary key, v text, w text, n int)",
    key: &["id"],
    swaps: true,
    child: false,
    long: false,
    counts: false,
    merges: false,
};

const PARTITIONED: &str = "create table {t} (id int, v text, w text, n int, primary key (id, n), unique (v, n))
                     partition by list (n);
                 create table {t}_0 partition of {t} for values in (0);
                 create table {t}_1 (w text, n int, id int not null, gone int, v text);
                 alter table {t}_1 drop column gone, alter n set not null;
                 alter table {t} attach partition {t}_1 for values in (1);
                 create table {t}_rest partition of {t} default";

/// All of them.
pub const LAYOUTS: &[Layout] = &[
    PLAIN,
    Layout {
        name: "unique",
        create: "create table {t} (id int primary key, v text unique, w text, n int)",
        swaps: false,
        ..PLAIN
    },
    Layout {
        name: "several unique keys",
        create: "create table {t} (id int primary key, v text unique, w text unique, n int)",
        swaps: false,
        ..PLAIN
    },
    Layout {
        name: "unique of two columns",
        create: "create table {t} (id int primary key, v text, w text, n int, unique (v, n))",
        swaps: false,
        ..PLAIN
    },
    Layout {
        name: "partial",
        create: "create table {t} (id int primary key, v text, w text, n int);
                 create unique index on {t} (v) where n % 2 = 0; create unique index on {t} (w) where v is not null",
        swaps: false,
        ..PLAIN
    },
    Layout {
        name: "on an expression",
        create: "create table {t} (id int primary key, v text, w text, n int);
                 create unique index on {t} (lower(v)); create unique index on {t} ((n % 3), w)",
        swaps: false,
        ..PLAIN
    },
    Layout {
        name: "nulls not distinct",
        create: "create table {t} (id int primary key, v text, w text, n int, unique nulls not distinct (v))",
        swaps: false,
        ..PLAIN
    },
    Layout {
        name: "deferrable",
        create: "create table {t} (id int primary key, v text, w text, n int,
                                   unique (v) deferrable initially deferred, unique (w) deferrable)",
        ..PLAIN
    },
    Layout {
        name: "key of two columns",
        create: "create table {t} (id int, v text, w text, n int, primary key (n, id), unique (v, n))",
        key: &["n", "id"],
        swaps: false,
        ..PLAIN
    },
    Layout {
        name: "key that is equal and not identical",
        create: "create table {t} (id numeric primary key, v text, w text unique, n int)",
        ..PLAIN
    },
    Layout { name: "partitioned", create: PARTITIONED, key: &["id", "n"], swaps: false, ..PLAIN },
    Layout {
        name: "long values",
        create: "create table {t} (id int primary key, v text, w text, n int);
                 alter table {t} alter v set storage external, alter w set storage external;
                 create unique index on {t} (md5(v))",
        swaps: false,
        long: true,
        ..PLAIN
    },
    Layout {
        name: "parent and child",
        create: "create table {t} (id int primary key, v text unique, w text, n int);
                 create table {t}_child (id int primary key,
                     parent int references {t} on delete cascade on update cascade, v text unique)",
        swaps: false,
        child: true,
        ..PLAIN
    },
    Layout {
        name: "counter",
        create: "create table {t} (id int primary key, v text, w text, n int not null)",
        counts: true,
        ..PLAIN
    },
    Layout {
        name: "counter of a row with unique keys",
        create: "create table {t} (id int primary key, v text unique, w text, n int not null);
                 create unique index on {t} (lower(w)) where v is not null",
        swaps: false,
        counts: true,
        ..PLAIN
    },
    Layout {
        name: "counter of a row with deferrable unique keys",
        create: "create table {t} (id int primary key, v text, w text, n int not null,
                                   unique (v) deferrable initially deferred, unique (w) deferrable)",
        counts: true,
        ..PLAIN
    },
    Layout {
        name: "counter in a partition",
        create: "create table {t} (id int primary key, v text, w text, n int not null) partition by hash (id);
                 create table {t}_0 partition of {t} for values with (modulus 2, remainder 0);
                 create table {t}_1 partition of {t} for values with (modulus 2, remainder 1)",
        counts: true,
        ..PLAIN
    },
    Layout { name: "merged columns", merges: true, ..PLAIN },
    Layout {
        name: "merged columns with unique keys",
        create: "create table {t} (id int primary key, v text unique, w text, n int not null);
                 create unique index on {t} (lower(w)) where v is not null",
        swaps: false,
        counts: true,
        merges: true,
        ..PLAIN
    },
    Layout {
        name: "merged columns of one unique key",
        create: "create table {t} (id int primary key, v text, w text unique, n int, unique (v, n))",
        swaps: false,
        merges: true,
        ..PLAIN
    },
    Layout {
        name: "merged columns of deferrable unique keys",
        create: "create table {t} (id int primary key, v text, w text, n int not null,
                                   unique (v) deferrable initially deferred, unique (w) deferrable)",
        counts: true,
        merges: true,
        ..PLAIN
    },
    Layout {
        name: "merged columns in a partition",
        create: PARTITIONED,
        key: &["id", "n"],
        swaps: false,
        merges: true,
        ..PLAIN
    },
];

impl Layout {
    /// The statements that make such a table of this name, and enable it.
    pub fn create(&self, table: &str) -> String {
        let resolution = if self.merges { "column_merge" } else { "last_update_wins" };
        let counters = if self.counts { "{n}" } else { "{}" };
        let names = self.tables(table).into_iter().map(|(name, _)| name);
        let enable = names.map(|name| format!("select duplex.enable('{name}', '{resolution}', '{counters}');"));
        format!("{}; {}", self.create.replace("{t}", table), enable.collect::<String>())
    }

    /// The names of its tables, and the columns of their keys.
    pub fn tables(&self, table: &str) -> Vec<(String, &'static [&'static str])> {
        let child: &[&str] = &["id"];
        let mut tables = vec![(table.to_owned(), self.key)];
        tables.extend(self.child.then(|| (format!("{table}_child"), child)));
        tables
    }
}
