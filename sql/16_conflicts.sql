-- The record of conflicts, and what a row's version is.

create table duplex.conflict_history (
    id                   bigint      generated always as identity primary key,
    recorded_at          timestamptz not null default clock_timestamp(),
    "table"              text        not null,
    kind                 text        not null,
    resolution           text        not null,
    key                  jsonb,
    local_row            jsonb,
    local_commit_time    timestamptz,
    local_origin         text,
    incoming_row         jsonb,
    incoming_commit_time timestamptz not null,
    incoming_origin      text        not null
);
create index conflict_history_recorded_at on duplex.conflict_history using brin (recorded_at);
comment on table duplex.conflict_history is 'Changes of peers that met another change, and what became of them.';
comment on column duplex.conflict_history.kind is 'PostgreSQL''s name for it, as insert_exists or update_origin_differs.';
comment on column duplex.conflict_history.resolution is
    'applied: the incoming change stands; skipped: what was here stays; hidden: the incoming row gave way to another row''s later claim of a unique value.';
comment on column duplex.conflict_history.local_row is
    'The row that was here, an array if there were several; null where there was none or it cannot be shown.';
comment on column duplex.conflict_history.local_commit_time is
    'With local_origin: the version of what was here, a row or the memory of one that is gone.';
comment on column duplex.conflict_history.incoming_row is 'The row that came; null for a DELETE.';

create table duplex.conflict_totals (
    "table" text   not null,
    kind    text   not null,
    count   bigint not null,
    primary key ("table", kind)
);
comment on table duplex.conflict_totals is 'How many conflicts were recorded whose rows are no longer in duplex.conflict_history.';

create view duplex.conflict_stats as
select s."table", s.kind, sum(s.count)::bigint as conflicts
  from (select h."table", h.kind, count(*) from duplex.conflict_history h group by 1, 2
        union all
        select t."table", t.kind, t.count from duplex.conflict_totals t) s
 group by 1, 2;
comment on view duplex.conflict_stats is 'How many conflicts of each kind each table has met, since the extension was created.';

create function duplex.clean_conflict_history(at_most integer default 1000) returns integer
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    cleaned integer;
begin
    -- The setting's unit is known once the library is there.
    load '$libdir/pg_duplex';
    -- One at a time, and nobody waits: who finds another at it leaves it to that one.
    if not pg_try_advisory_xact_lock(x'64757078'::integer, 2) then
        return 0;
    end if;
    with old as (
        select h.ctid from duplex.conflict_history h
         where h.recorded_at < now() - current_setting('duplex.conflict_retention')::interval
         limit at_most
    ), gone as (
        delete from duplex.conflict_history h using old where h.ctid = old.ctid returning h."table", h.kind
    ), counted as (
        insert into duplex.conflict_totals as t ("table", kind, count)
        select g."table", g.kind, count(*) from gone g group by 1, 2
        on conflict ("table", kind) do update set count = t.count + excluded.count
    )
    select count(*) into cleaned from gone;
    return cleaned;
end
$$;
comment on function duplex.clean_conflict_history(integer) is
    'Relay: removes records of conflicts that are older than duplex.conflict_retention, at most so many.';

create function duplex.row_version(relation regclass, variadic key text[],
                                   out commit_time timestamptz, out origin text, out standing text)
    language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
declare
    index     oid := duplex.identity_index(relation);
    register  regclass;
    of_rows   regclass;
    condition text;
    of_key    text;
    writer    xid;
    written   bigint;
    kind      "char";
    origin_id oid;
begin
    if not has_table_privilege(session_user, relation, 'select') then
        raise exception 'permission denied for table %', relation using errcode = 'insufficient_privilege';
    end if;
    select r.register into register from duplex.registers r where r.relid = relation and r.of_index = 0;
    if not found then
        raise exception 'table % is not enabled', relation
            using errcode = 'undefined_object', hint = 'The view duplex.tables lists the enabled tables.';
    end if;
    select string_agg(format('%I = $1[%s]::%s', a.attname, n, format_type(a.atttypid, a.atttypmod)), ' and ' order by n),
           string_agg(format('k%s = $1[%s]::%s', n, n, format_type(a.atttypid, a.atttypmod)), ' and ' order by n)
      into condition, of_key
      from pg_index i
     cross join generate_series(1, i.indnkeyatts) n
      join pg_attribute a on a.attrelid = relation and a.attnum = i.indkey[n - 1]
     where i.indexrelid = index;
    if cardinality(key) is distinct from (select i.indnkeyatts::integer from pg_index i where i.indexrelid = index) then
        raise exception 'the key of table % has another number of columns', relation using errcode = 'invalid_parameter_value';
    end if;
    standing := 'row';
    execute format('select t.xmin from %s t where %s', relation, condition) into writer using key;
    select r.register into of_rows from duplex.registers r where r.relid = relation and r.of_index = relation;
    if writer is not null and of_rows is not null then
        execute format('select t.commit_ts, t.origin from %s t where %s and t.xmin = $2', of_rows, of_key)
           into written, origin using key, writer;
    end if;
    if writer is null then
        execute format('select t.xmin, t.commit_ts, t.origin, t.kind from %s t where %s order by t.ctid desc limit 1',
                       register, of_key)
           into writer, written, origin, kind using key;
        standing := case kind when 'g' then 'gone' when 'h' then 'hidden' end;
    end if;
    if written = -9223372036854775808 then
        origin := null;
    elsif written is not null then
        commit_time := '2000-01-01 00:00:00+00'::timestamptz + written * interval '1 microsecond';
        origin := coalesce(origin, (select n.name from duplex.node n));
    elsif writer is not null and writer::text::bigint >= 3 then
        select c.timestamp, c.roident into commit_time, origin_id from pg_xact_commit_timestamp_origin(writer) c;
        if commit_time is not null then
            origin := coalesce(
                (select p.name from pg_replication_origin o
                   join pg_database d on d.datname = current_database()
                   join duplex.peer_registry p on o.roname = 'duplex_' || d.oid || '_' || p.name
                  where o.roident = origin_id),
                (select n.name from duplex.node n));
        end if;
    end if;
end
$$;
comment on function duplex.row_version(regclass, text[]) is
    'The version of the row with that key: when and on which node it was last written. Also of one that is gone.';
