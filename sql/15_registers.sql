-- Registers: what a node remembers of keys that are gone and of unique values that were given up, so that every node
-- decides alike whatever came first. Each enabled table has its own, because a key is found by its own operators: keys
-- may be equal and not identical. They are written at heap level, by capture and by apply, below permission checks.

create table duplex.registers (
    relid     oid  not null,
    of_index  oid  not null,
    register  oid  not null,
    signature text not null
);
comment on table duplex.registers is 'Which table in schema duplex remembers what of an enabled table.';
comment on column duplex.registers.of_index is
    '0: the tombstones of keys; the table itself: the versions of rows that were rewritten by a change that lost; else the unique index whose released values are claimed.';
comment on column duplex.registers.signature is 'What the register was made for; where this is no longer so, it is made anew.';

create table duplex.truncates (
    relid     oid not null,
    commit_ts bigint,
    origin    text
);
comment on table duplex.truncates is 'The newest TRUNCATE of each table. No commit_ts: that of the transaction that wrote the row.';

-- The index that identifies the rows of a table.
create function duplex.identity_index(relation regclass) returns oid
    language sql stable set search_path = pg_catalog, pg_temp
as $$
    select i.indexrelid
      from pg_index i
     where i.indrelid = relation and i.indisvalid and (i.indisreplident or i.indisprimary)
     order by i.indisreplident desc
     limit 1
$$;

-- The columns of a table that holds the values of an index's key, and how they are to be indexed to be found alike.
create function duplex.index_shape(index oid, prefix text, out columns text, out keys text)
    language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    of_index pg_index := (select i from pg_index i where i.indexrelid = index);
    type     oid;
    base     oid;
begin
    for n in 1 .. coalesce(of_index.indnkeyatts, 0) loop
        -- The table's type where there is a column: an index may store another one.
        select a.atttypid into type
          from pg_attribute a
         where a.attrelid = case of_index.indkey[n - 1] when 0 then index else of_index.indrelid end
           and a.attnum = case of_index.indkey[n - 1] when 0 then n else of_index.indkey[n - 1] end;
        loop
            select t.typbasetype into base from pg_type t where t.oid = type and t.typtype = 'd';
            exit when not found;
            type := base;
        end loop;
        columns := concat_ws(', ', columns, format('%s%s %s', prefix, n,
                             format_type(case type when 'cstring'::regtype then 'name'::regtype else type end, -1)));
        keys := concat_ws(', ', keys, (
            select format('%s%s%s %I.%I', prefix, n,
                          (select format(' collate %I.%I', s.nspname, c.collname)
                             from pg_collation c join pg_namespace s on s.oid = c.collnamespace
                            where c.oid = of_index.indcollation[n - 1]), s.nspname, o.opcname)
              from pg_opclass o join pg_namespace s on s.oid = o.opcnamespace
             where o.oid = of_index.indclass[n - 1]));
    end loop;
end
$$;

-- A table's unique indexes but the key's; those of partitions too, where they are not parts of the whole table's.
create function duplex.second_unique_indexes(relation regclass) returns table (indexrelid oid)
    language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select i.indexrelid
      from pg_index i
     where i.indrelid = any (array(select p.relid::oid from pg_partition_tree(relation) p union select relation::oid))
       and i.indisunique and i.indisvalid and i.indexrelid <> duplex.identity_index(relation)
       and not exists (select from pg_inherits h where h.inhrelid = i.indexrelid);
end
$$;

-- What a table with a policy keeps: its counters, in the order in which a tombstone has what is left of them, and
-- whether its columns are merged. NULL for any other table.
create function duplex.kept(relation regclass, out kept text, out merges boolean)
    language sql stable set search_path = pg_catalog, pg_temp
as $$
    select nullif(concat_ws(' / ', nullif(t.resolution, 'last_update_wins'), c.counters), ''), t.resolution = 'column_merge'
      from (select relation) r
      left join duplex.table_registry t on t.relid = r.relation
     cross join lateral (select string_agg(quote_ident(d), ', ' order by d collate "C") from unnest(t.delta_columns) d) c (counters)
$$;

-- The registers that a table ought to have.
create function duplex.wanted_registers(relation regclass)
    returns table (of_index oid, columns text, keys text, signature text)
    language sql stable set search_path = pg_catalog, pg_temp
as $$
    select w.of_index, w.columns, w.keys, concat_ws(' / ', w.columns, w.keys, w.kept) from (
        select 0::oid, s.columns || ', kind "char" not null, commit_ts bigint, origin text'
                       || case when p.kept is not null then ', residual numeric[]' else '' end
                       || case when p.merges then ', kept bytea' else '' end, s.keys, p.kept
          from duplex.index_shape(duplex.identity_index(relation), 'k') s
         cross join duplex.kept(relation) p
         where s.columns is not null
        union all
        select relation::oid, s.columns || ', commit_ts bigint, origin text'
                              || case when p.merges then ', stamps bytea' else '' end, s.keys, null
          from duplex.index_shape(duplex.identity_index(relation), 'k') s
         cross join duplex.kept(relation) p
         where s.columns is not null and p.kept is not null
        union all
        select i.indexrelid, v.columns || ', ' || k.columns || ', commit_ts bigint, origin text'
                             || case when p.merges then ', number bigint not null' else '' end, v.keys, null
          from duplex.second_unique_indexes(relation) i
         cross join duplex.kept(relation) p
         cross join duplex.index_shape(i.indexrelid, 'v') v
         cross join duplex.index_shape(duplex.identity_index(relation), 'k') k
         where k.columns is not null) w (of_index, columns, keys, kept)
$$;

-- Without jit: compiling takes seconds, what it does takes milliseconds.
create function duplex.fit_registers(relation regclass) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set jit = off
as $$
declare
    wanted  record;
    present duplex.registers;
    made    text;
    changed boolean := false;
begin
    if not exists (select from duplex.table_registry t where t.relid = relation) then
        return;
    end if;
    -- REINDEX CONCURRENTLY gives an index another oid: what it remembers stays its own.
    if exists (select from duplex.registers r
                where r.relid = relation and r.of_index <> 0
                  and not exists (select from pg_class c where c.oid = r.of_index)) then
        update duplex.registers r
           set of_index = w.of_index
          from duplex.wanted_registers(relation) w
         where r.relid = relation and r.of_index <> 0 and r.signature = w.signature
           and not exists (select from pg_class c where c.oid = r.of_index)
           and not exists (select from duplex.registers o where o.relid = relation and o.of_index = w.of_index);
        changed := found;
    end if;
    if exists (select from duplex.registers r where r.relid = relation) then
        for present in
            select r.* from duplex.registers r
             where r.relid = relation
               and not exists (select from duplex.wanted_registers(relation) w
                                where w.of_index = r.of_index and w.signature = r.signature)
        loop
            perform duplex.drop_register(present.register);
            changed := true;
        end loop;
    end if;
    for wanted in
        select w.* from duplex.wanted_registers(relation) w
         where not exists (select from duplex.registers r where r.relid = relation and r.of_index = w.of_index)
    loop
        made := case wanted.of_index when 0 then format('tombstones_%s', relation::oid)
                     when relation::oid then format('versions_%s', relation::oid)
                     else format('claims_%s_%s', relation::oid, wanted.of_index) end;
        -- What is forgotten is cleaned up soon: a file of no length is what spares a new row its look-up.
        execute format('create table duplex.%I (%s) with (autovacuum_vacuum_threshold = 0, autovacuum_vacuum_scale_factor = 0.1)',
                       made, wanted.columns);
        execute format('create index on duplex.%I using btree (%s)', made, wanted.keys);
        execute format('revoke all on duplex.%I from public', made);
        execute format('comment on table duplex.%I is %L', made,
                       case wanted.of_index when 0 then 'Keys that are gone or hidden, of '
                            when relation::oid then 'Versions of rows that are not those of their writers, of '
                            else 'Unique values once held, of ' end
                       || relation);
        -- A member of the extension: not in dumps, where it would be of no use, and gone with the extension.
        execute format('alter extension pg_duplex add table duplex.%I', made);
        insert into duplex.registers
        values (relation, wanted.of_index, format('duplex.%I', made)::regclass, wanted.signature);
        changed := true;
    end loop;
    if changed then
        perform duplex.announce(relation);
    end if;
end
$$;
comment on function duplex.fit_registers(regclass) is
    'Makes a table''s registers fit its key and its unique indexes. Called by itself where these change.';

create function duplex.drop_register(register regclass) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    delete from duplex.registers r where r.register = drop_register.register;
    execute format('alter extension pg_duplex drop table %s', register);
    execute format('drop table %s', register);
end
$$;

create function duplex.drop_registers(relation oid) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform duplex.drop_register(r.register) from duplex.registers r where r.relid = relation;
    delete from duplex.truncates t where t.relid = relation;
end
$$;

create function duplex.announce(relation oid) returns void
    language c strict volatile
    as 'MODULE_PATHNAME', 'announce_wrapper';
comment on function duplex.announce(oid) is
    'Tells all sessions to look up anew what they know of a table.';

-- A changed key or unique index needs other registers.
create function duplex.fit_changed_tables() returns event_trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp set jit = off
as $$
declare
    changed  oid;
    relation oid;
begin
    for changed in
        select d.objid from pg_event_trigger_ddl_commands() d
         where d.classid = 'pg_class'::regclass and d.schema_name is distinct from 'duplex'
    loop
        relation := coalesce((select i.indrelid from pg_index i where i.indexrelid = changed), changed);
        relation := coalesce(pg_partition_root(relation), relation);
        perform duplex.fit_registers(t.relid), duplex.check_policy(t.relid)
           from duplex.table_registry t where t.relid = relation;
    end loop;
end
$$;
create event trigger duplex_fit_changed_tables on ddl_command_end
    when tag in ('ALTER TABLE', 'CREATE INDEX', 'CREATE TABLE')
    execute function duplex.fit_changed_tables();
