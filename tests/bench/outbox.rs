//! What most people write themselves: a trigger in PL/pgSQL that puts each row as JSON into a table.

/// The table and the trigger's function.
pub(crate) const CREATE: &str = "
    create table outbox (id bigserial primary key, at timestamptz not null default clock_timestamp(),
                         relation name not null, operation text not null, change jsonb not null);
    create function outbox_row() returns trigger language plpgsql as $$
    begin
        insert into outbox (relation, operation, change)
        values (tg_table_name, tg_op, to_jsonb(case when tg_op = 'DELETE' then old else new end));
        return null;
    end $$;";

/// Captures a table.
pub(crate) fn enable(table: &str) -> String {
    format!(
        "create trigger outbox after insert or update or delete on {table} for each row execute function outbox_row();"
    )
}
