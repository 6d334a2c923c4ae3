//! The SQL is written by hand: a type in a declaration that is not the function's own would be memory corruption.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use duplex_lab::Lab;

/// What SQL calls, by the name of its symbol: arguments, result, columns of the result.
type Signatures = BTreeMap<String, String>;

/// The SQL type of a Rust type as pgrx converts it.
fn sql_type(rust: &str) -> Result<String> {
    let plain = rust.trim().trim_start_matches("'static,").trim();
    if let Some(inner) = inside(plain, "Option<", ">") {
        return sql_type(inner);
    }
    for (open, array) in [("Array<'_,", "[]"), ("SetOfIterator<'static,", " set")] {
        if let Some(inner) = inside(plain, open, ">") {
            return Ok(sql_type(inner)? + array);
        }
    }
    Ok(match plain {
        "i16" => "smallint",
        "i32" => "integer",
        "i64" => "bigint",
        "bool" => "boolean",
        "pg_sys::Oid" => "oid",
        "&str" | "String" => "text",
        "&[u8]" | "Vec<u8>" => "bytea",
        "pgrx::Uuid" | "Uuid" => "uuid",
        "()" | "" => "void",
        _ => bail!("no SQL type is known for the Rust type {plain}"),
    }
    .to_owned())
}

fn inside<'t>(text: &'t str, open: &str, close: &str) -> Option<&'t str> {
    text.strip_prefix(open)?.strip_suffix(close)
}

/// Splits at commas outside of brackets.
fn list(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' | '<' | '[' => depth += 1,
            ')' | '>' | ']' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}

/// What the sources say: each function under `#[pg_extern]`.
fn of_rust(folder: &Path, found: &mut Signatures) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            of_rust(&path, found)?;
            continue;
        }
        let source = std::fs::read_to_string(&path)?;
        for rest in source.split("#[pg_extern").skip(1) {
            let (_, rest) = rest.split_once("fn ").context("a function follows the attribute")?;
            let (head, _) = rest.split_once("{\n").context("a function has a body")?;
            let head: String = head.split_whitespace().collect::<Vec<_>>().join(" ");
            let (name, rest) = head.split_once('(').context("a function has arguments")?;
            let (arguments, result) = match rest.rsplit_once(") -> ") {
                Some(parts) => parts,
                None => (rest.trim_end().trim_end_matches(')'), "()"),
            };
            let mut signature = Vec::new();
            for argument in list(arguments) {
                let (name, rust) = argument.split_once(": ").with_context(|| format!("argument {argument}"))?;
                // The call itself, which SQL does not see.
                if !rust.ends_with("FunctionCallInfo") {
                    signature.push(format!("{name} {}", sql_type(rust)?));
                }
            }
            let result = result.trim();
            let result = match inside(result, "TableIterator<", ">") {
                Some(row) => {
                    let row = row.trim().trim_start_matches("'static,").trim().trim_end_matches(',');
                    let columns = inside(row, "(", ")").context("a row is a tuple")?;
                    let columns: Result<Vec<String>> = (list(columns).into_iter())
                        .map(|column| {
                            let column = inside(column, "name!(", ")").with_context(|| format!("column {column}"))?;
                            let (name, rust) = column.split_once(", ").context("a column has a type")?;
                            Ok(format!("{name} {}", sql_type(rust)?))
                        })
                        .collect();
                    format!("table ({})", columns?.join(", "))
                }
                None => sql_type(result)?,
            };
            found.insert(format!("{name}_wrapper"), format!("({}) {result}", signature.join(", ")));
        }
    }
    Ok(())
}

#[tokio::test]
async fn declarations_agree_with_the_functions() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let rows = lab
        .node(0)
        .rows(
            "select prosrc,
                    format('(%s) %s',
                           (select coalesce(string_agg(trim(proargnames[n] || ' ' || t::regtype), ', ' order by n), '')
                              from unnest(proargtypes) with ordinality u (t, n)),
                           case when 't' = any(proargmodes)
                                then format('table (%s)', (select string_agg(name || ' ' || t::regtype, ', ' order by n)
                                                             from unnest(proallargtypes, proargmodes, proargnames)
                                                                  with ordinality u (t, mode, name, n) where mode = 't'))
                                when prokind = 'p' then 'void'
                                else prorettype::regtype || case when proretset then ' set' else '' end end),
                    proisstrict or prokind = 'p' or pronargs = 0 or prorettype = 'trigger'::regtype
               from pg_proc p join pg_language l on l.oid = prolang
              where pronamespace = 'duplex'::regnamespace and lanname = 'c'",
        )
        .await?;
    let mut declared = Signatures::new();
    for row in rows {
        let symbol = row[0].clone().context("a C function has a symbol")?;
        // A function that is not strict would be given a NULL that its arguments have no room for.
        ensure!(row[2].as_deref() == Some("t"), "{symbol} is not strict");
        declared.insert(symbol, row[1].clone().context("a signature")?);
    }
    let mut written = Signatures::new();
    of_rust(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../pg_ext/src"), &mut written)?;
    // These follow the convention of triggers, and take nothing.
    for trigger in ["duplex_capture_row", "duplex_capture_truncate", "duplex_parked_has_changed"] {
        written.insert(trigger.to_owned(), "() trigger".to_owned());
    }
    assert!(written.len() > 8, "functions were not found in the sources: {written:?}");
    assert_eq!(declared, written, "the SQL's declarations, the functions");
    Ok(())
}
