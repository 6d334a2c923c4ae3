//! Values of every built-in type, and tables that hold them.

use anyhow::{Context, Result, ensure};
use duplex_lab::{Node, Session};

/// A type and texts that its input function reads: its extremes, and what has been gone wrong about elsewhere.
type Sample = (&'static str, &'static [&'static str]);

const SAMPLES: &[Sample] = &[
    ("bool", &["t", "f"]),
    ("int2", &["-32768", "0", "32767"]),
    ("int4", &["-2147483648", "0", "2147483647"]),
    ("int8", &["-9223372036854775808", "-1", "9223372036854775807"]),
    ("float4", &["NaN", "Infinity", "-Infinity", "-0", "1e-45", "3.4028235e38", "0.1"]),
    (
        "float8",
        &["NaN", "Infinity", "-Infinity", "-0", "5e-324", "1.7976931348623157e308", "0.1", "1e15", "123456.789"],
    ),
    (
        "numeric",
        &[
            "0",
            "0.000",
            "-1.50",
            "1.000",
            "NaN",
            "Infinity",
            "-Infinity",
            "1e131071",
            "1e-16383",
            "9999",
            "10000",
            "-10000.0001",
            "0.00010000",
            "123456789012345678901234567890.0000000001",
        ],
    ),
    ("money", &["0", "1.23", "-1234.50", "-92233720368547758.08", "92233720368547758.07"]),
    ("oid", &["0", "4294967295"]),
    ("xid", &["0", "4294967295"]),
    ("cid", &["0", "4294967295"]),
    ("xid8", &["0", "18446744073709551615"]),
    ("tid", &["(0,1)", "(4294967295,65535)"]),
    ("text", &["", "ä 한글 😀", "a\nb\t\\ \"'{},()", " NULL ", "null"]),
    ("varchar", &["", "홍길동", "trailing  "]),
    ("bpchar", &["", "x", "홍길동   "]),
    ("name", &["", "이름", "a_name_of_63_bytes_a_name_of_63_bytes_a_name_of_63_bytes_a_name_"]),
    // Beyond ASCII it is one byte that is no text: it may travel as an image only.
    ("char", &["", "a", "\\", "é"]),
    ("bytea", &["", "\\x00", "\\xff005c27220a", "\\\\000"]),
    ("date", &["-infinity", "infinity", "4714-11-24 BC", "0001-01-01 BC", "2000-01-01", "5874897-12-31"]),
    ("time", &["00:00", "23:59:59.999999", "24:00"]),
    ("timetz", &["00:00+15:59:59", "12:34:56.789+09", "24:00-15:59:59"]),
    (
        "timestamp",
        &[
            "-infinity",
            "infinity",
            "4714-11-24 00:00:00 BC",
            "1999-12-31 23:59:59.999999",
            "294276-12-31 23:59:59.999999",
        ],
    ),
    (
        "timestamptz",
        &[
            "-infinity",
            "infinity",
            "4714-11-24 00:00:00+00 BC",
            "2024-02-29 12:00:00+09",
            "294276-12-31 23:59:59.999999+00",
        ],
    ),
    (
        "interval",
        &[
            "0",
            "1 year -2 mons 3 days -04:05:06.789",
            "-1 days +02:03:04",
            "-178000000 years",
            "178000000 years",
            "0.000001s",
        ],
    ),
    ("uuid", &["00000000-0000-0000-0000-000000000000", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]),
    ("json", &["null", "{\"b\": 1, \"a\": 2, \"a\": 3}", " [1 , 2] ", "\"\\u0000\""]),
    (
        "jsonb",
        &[
            "null",
            "true",
            "-1.500",
            "\"한글\"",
            "[]",
            "{}",
            "[[[]], {}, [1, [2, {\"a\": [null]}]]]",
            "1e1000",
            "{\"\": 0, \"b\": {\"aa\": [1, \"x\", null, false]}, \"a\": 0.0001, \"한글\": \"\\n\\\"\"}",
            "[1, 22, \"333\", 4.4444, \"55555\", [], 123456789012345678901234567890]",
        ],
    ),
    ("jsonpath", &["$", "lax $.\"a b\"[*] ? (@.x > 1.5 && exists (@.y)).type()", "strict $.**{2 to 3}"]),
    ("xml", &["", "text only", "<a b=\"c\">한글</a><d/>", "<?xml version=\"1.0\" standalone=\"yes\"?><r/>"]),
    ("point", &["(0.1,-1e308)", "(NaN,Infinity)"]),
    ("lseg", &["[(0.1,2),(3,4)]"]),
    ("path", &["((0.1,2),(3,4))", "[(0.1,2),(3,4),(5,6)]"]),
    ("box", &["(3,4),(0.1,2)"]),
    ("polygon", &["((0.1,2),(3,4),(5,6))"]),
    ("line", &["{1,-1,0.1}"]),
    ("circle", &["<(0.1,2),3>"]),
    ("inet", &["0.0.0.0/0", "192.168.0.1/24", "::1", "::ffff:1.2.3.4/64"]),
    ("cidr", &["10.0.0.0/8", "2001:db8::/32"]),
    ("macaddr", &["00:00:00:00:00:00", "08:00:2b:01:02:ff"]),
    ("macaddr8", &["08:00:2b:01:02:03:04:ff"]),
    ("bit", &["", "1", "0000000001", "101010101010101010101"]),
    ("varbit", &["", "0", "111100001"]),
    ("tsvector", &["", "'a':1A,2B 'it''s':3 '한글':16383"]),
    ("tsquery", &["", "!'a':*B & ('it''s' <2> 'c' | 'd')"]),
    ("pg_lsn", &["0/0", "FFFFFFFF/FFFFFFFF"]),
    ("pg_snapshot", &["10:20:10,14,15", "1:1:"]),
    ("txid_snapshot", &["10:20:10,14,15"]),
    ("refcursor", &["a cursor"]),
    ("aclitem", &["=r/postgres", "relay=arw*/postgres"]),
    ("int2vector", &["", "1 -2 32767"]),
    ("oidvector", &["", "1 4294967295"]),
    ("regproc", &["now", "-"]),
    ("regprocedure", &["abs(integer)", "-"]),
    ("regoper", &["||/", "0"]),
    ("regoperator", &["+(integer,integer)", "-(none,bigint)"]),
    ("regclass", &["pg_class", "information_schema.tables", "-", "4294967294"]),
    ("regcollation", &["\"C\"", "-"]),
    ("regtype", &["integer", "timestamp with time zone", "information_schema.cardinal_number", "-"]),
    ("regrole", &["postgres", "pg_monitor", "-"]),
    ("regnamespace", &["pg_catalog", "information_schema", "-"]),
    ("regconfig", &["english", "-"]),
    ("regdictionary", &["simple", "-"]),
    ("int4range", &["empty", "[1,10)", "(,)", "[2147483646,)"]),
    ("int8range", &["empty", "[-9223372036854775808,5)"]),
    ("numrange", &["(1.50,2.000]", "[NaN,NaN]", "[,Infinity)"]),
    ("daterange", &["[2000-01-01,infinity]", "(,0001-01-01 BC)"]),
    ("tsrange", &["[-infinity,infinity]", "[\"2000-01-01 00:00:00\",\"2000-01-01 00:00:00.000001\")"]),
    ("tstzrange", &["empty", "[\"2000-01-01 00:00:00+09\",)"]),
    ("int4multirange", &["{}", "{[1,3),[5,8)}", "{(,)}"]),
    ("int8multirange", &["{}", "{[1,3),[5,8)}"]),
    ("nummultirange", &["{}", "{[1.5,2.00),[NaN,NaN]}"]),
    ("datemultirange", &["{[2000-01-01,2000-02-01),[2001-01-01,infinity]}"]),
    ("tsmultirange", &["{[\"2000-01-01 00:00:00\",\"2001-01-01 00:00:00\")}"]),
    ("tstzmultirange", &["{[\"2000-01-01 00:00:00+09\",\"2001-01-01 00:00:00-03\")}"]),
];

/// Types of the server's own catalogs whose input functions refuse everything: nobody can write a value of them.
const WITHOUT_INPUT: [&str; 7] = [
    "gtsvector",
    "pg_node_tree",
    "pg_ndistinct",
    "pg_dependencies",
    "pg_mcv_list",
    "pg_brin_bloom_summary",
    "pg_brin_minmax_multi_summary",
];

/// A type, the table of its values and the table of arrays of them.
pub(crate) struct Tables {
    pub(crate) type_name: String,
    /// The type's send function, where it may be called by hand: its bytes show differences that text may not.
    send: Option<String>,
    values: &'static [&'static str],
}

/// Every built-in type of which a table can hold values. Fails if the catalog has one that is not known here.
pub(crate) async fn every_type(session: &Session) -> Result<Vec<Tables>> {
    let rows = session
        .rows(
            "select t.typname, case when p.proargtypes[0] = t.oid then p.proname end \
               from pg_type t left join pg_proc p on p.oid = t.typsend \
              where t.typnamespace = 'pg_catalog'::regnamespace and t.typtype in ('b', 'r', 'm') \
                and t.typname not like '\\_%' order by t.typname",
        )
        .await?;
    let mut all = Vec::new();
    for row in rows {
        let type_name = row[0].clone().context("a type has a name")?;
        if WITHOUT_INPUT.contains(&type_name.as_str()) {
            session.refuses("0A000", &format!("select 'x'::pg_catalog.\"{type_name}\"")).await?;
            continue;
        }
        let sample = SAMPLES.iter().find(|(name, _)| *name == type_name);
        let &(_, values) = sample.with_context(|| format!("no samples of the built-in type {type_name}"))?;
        // Objects may have another oid on another node: a reg* type is the same by name.
        let send = row[1].clone().filter(|_| !type_name.starts_with("reg"));
        all.push(Tables { type_name, send, values });
    }
    ensure!(all.len() == SAMPLES.len(), "{} types are known here, the catalog has {}", SAMPLES.len(), all.len());
    Ok(all)
}

impl Tables {
    /// The name of the table with prefix `v` (values) or `a` (arrays).
    pub(crate) fn table(&self, prefix: &str) -> String {
        format!("{prefix}_{}", self.type_name)
    }

    /// Creates both tables, with `prefix` before their names.
    pub(crate) fn create(&self, prefix: &str) -> String {
        let name = &self.type_name;
        format!(
            "create table {prefix}v_{name} (id int primary key, v pg_catalog.\"{name}\", note text); \
             create table {prefix}a_{name} (id int primary key, v pg_catalog.\"{name}\"[], note text);"
        )
    }

    /// Fills both tables: each value and NULL; arrays with NULLs, of no, one and two dimensions, with other bounds.
    pub(crate) fn fill(&self, prefix: &str) -> String {
        let name = &self.type_name;
        let mut sql = format!("insert into {prefix}v_{name} values (0, null);");
        for (id, value) in self.values.iter().enumerate() {
            let value = duplex_lab::session::literal(value);
            sql += &format!("insert into {prefix}v_{name} values ({}, {value});", id + 1);
        }
        if name.ends_with("vector") && name != "tsvector" {
            // They are arrays themselves, so array_agg would make one of two dimensions of them.
            sql += &format!("insert into {prefix}a_{name} values (1, '{{\"1 2\",NULL,\"\"}}'), (2, null);");
            return sql;
        }
        // Before PostgreSQL 16 the text of such an array is not text in any encoding.
        let presentable = if name == "char" { "where id < 4" } else { "" };
        sql += &format!(
            "insert into {prefix}a_{name} select 1, array_agg(v order by id) from {prefix}v_{name} {presentable}; \
             insert into {prefix}a_{name} select 2, array[v, v] from {prefix}a_{name} where id = 1; \
             insert into {prefix}a_{name} select 3, ('[-1:' || cardinality(v) - 2 || ']=' || v::text)::pg_catalog.\"{name}\"[] \
               from {prefix}a_{name} where id = 1; \
             insert into {prefix}a_{name} values (4, '{{}}'), (5, null);"
        );
        sql
    }

    /// What the table with that prefix holds, by text and, where it may be, by the bytes of the binary protocol.
    pub(crate) async fn contents(&self, node: &Node, prefix: &str) -> Result<Vec<String>> {
        let bytes = match &self.send {
            Some(send) if prefix.ends_with('v') => format!("encode({send}(v), 'hex')"),
            _ => "''".to_owned(),
        };
        let table = self.table(prefix);
        let rows = node.rows(&format!("select id, v::text, {bytes}, note from {table} order by id")).await?;
        Ok(rows.into_iter().map(|row| format!("{row:?}")).collect())
    }
}
