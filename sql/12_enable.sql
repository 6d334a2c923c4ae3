-- Which tables take part.

-- Why a table cannot take part: message, detail and hint, or no row if it can.
create function duplex.unfit(relation regclass, out sqlstate text, out message text, out hint text)
    returns setof record
    language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    c pg_class := (select c from pg_class c where c.oid = relation);
begin
    if c.relkind not in ('r', 'p') then
        sqlstate := '42809';
        message := format('%s is %s, not a table', relation, case c.relkind
            when 'v' then 'a view' when 'm' then 'a materialized view' when 'f' then 'a foreign table'
            when 'S' then 'a sequence' when 'i' then 'an index' when 'I' then 'a partitioned index'
            when 'c' then 'a composite type' else 'a TOAST table' end);
        hint := 'Only ordinary and partitioned tables can be replicated.';
        return next;
    elsif c.relpersistence <> 'p' then
        sqlstate := '42809';
        message := format('%s is %s', relation,
                          case c.relpersistence when 't' then 'a temporary table' else 'an unlogged table' end);
        hint := case c.relpersistence when 't' then 'Only permanent tables can be replicated.'
                     else 'Make it permanent with "alter table … set logged".' end;
        return next;
    elsif c.relnamespace in ('duplex'::regnamespace, 'pg_catalog'::regnamespace, 'information_schema'::regnamespace)
    then
        sqlstate := '42809';
        message := format('%s belongs to the system', relation);
        hint := 'Only your own tables can be replicated.';
        return next;
    elsif c.relispartition then
        sqlstate := '42809';
        message := format('%s is a partition', relation);
        hint := format('Enable the partitioned table %s; its partitions are covered by it.', pg_partition_root(relation));
        return next;
    elsif not exists (
        select from pg_index i
        where i.indrelid = relation and i.indisvalid and i.indimmediate
          -- Partitions, which rows are captured in, do not inherit a replica identity.
          and (case when c.relreplident = 'i' and c.relkind = 'r' then i.indisreplident else i.indisprimary end))
    then
        sqlstate := '55000';
        message := format('%s has no usable key', relation);
        hint := case when c.relkind = 'p'
            then 'Add a primary key that is not deferrable: a partitioned table is known by nothing else.'
            when c.relreplident = 'i'
            then 'Its replica identity index is gone: set another, or "replica identity default" with a primary key.'
            else 'Add a primary key that is not deferrable, or name a unique index on columns that are not null with '
                 '"alter table … replica identity using index".' end;
        return next;
    end if;
end
$$;

create function duplex.enable(relation regclass, resolution text default 'last_update_wins',
                              delta_columns name[] default '{}') returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    problem record;
begin
    if relation is null then
        raise exception 'no table given' using errcode = 'null_value_not_allowed';
    end if;
    if not exists (select from duplex.node) then
        raise exception 'this database is not a pg_duplex node yet'
            using errcode = 'object_not_in_prerequisite_state', hint = 'Call duplex.create_node(''a name'') first.';
    end if;
    if current_setting('track_commit_timestamp') <> 'on' then
        raise exception 'pg_duplex needs commit timestamps, and track_commit_timestamp is off'
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'Run "alter system set track_commit_timestamp = on" and restart the server.';
    end if;
    if not pg_has_role(session_user, (select c.relowner from pg_class c where c.oid = relation), 'usage') then
        raise exception 'must be owner of table %', relation using errcode = 'insufficient_privilege';
    end if;
    select * into problem from duplex.unfit(relation);
    if not found then
        select * into problem from duplex.unfit_policy(relation, resolution, delta_columns);
    end if;
    if found then
        raise exception '%', problem.message using errcode = problem.sqlstate, hint = problem.hint;
    end if;
    if exists (select from duplex.table_registry t where t.relid = relation) then
        raise exception 'table % is enabled already', relation
            using errcode = 'duplicate_object', hint = 'The view duplex.tables lists the enabled tables.';
    end if;

    insert into duplex.table_registry (relid, resolution, delta_columns)
    values (relation, enable.resolution, enable.delta_columns);
    perform duplex.fit_registers(relation);
    -- Triggers fire in the order of their names: capture comes before those that may write, and RI_ConstraintTrigger_*.
    execute format('create trigger "00_duplex_capture" after insert or update or delete on %s '
                   'for each row execute function duplex.capture_row()', relation);
    execute format('create trigger "00_duplex_capture_truncate" after truncate on %s '
                   'for each statement execute function duplex.capture_truncate()', relation);
    -- ALWAYS: neither session_replication_role nor anything else but the mark of replication switches capture off.
    execute format('alter table %s enable always trigger "00_duplex_capture"', relation);
    execute format('alter table %s enable always trigger "00_duplex_capture_truncate"', relation);
    -- So that DROP EXTENSION takes the triggers with it and leaves the tables as they were.
    execute format('alter trigger "00_duplex_capture" on %s depends on extension pg_duplex', relation);
    execute format('alter trigger "00_duplex_capture_truncate" on %s depends on extension pg_duplex', relation);
    perform duplex.guard_partitions(relation);
    perform duplex.guard_kept(relation);
    perform duplex.note_descriptors(relation);
end
$$;
comment on function duplex.enable(regclass, text, name[]) is
    'From now on this table''s changes go to the peers, and theirs come here. Call it on every node, on equal tables.';

create function duplex.disable(relation regclass) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if not pg_has_role(session_user, (select c.relowner from pg_class c where c.oid = relation), 'usage') then
        raise exception 'must be owner of table %', relation using errcode = 'insufficient_privilege';
    end if;
    delete from duplex.table_registry t where t.relid = relation;
    if not found then
        raise exception 'table % is not enabled', relation
            using errcode = 'undefined_object', hint = 'The view duplex.tables lists the enabled tables.';
    end if;
    execute format('drop trigger if exists "00_duplex_capture" on %s', relation);
    execute format('drop trigger if exists "00_duplex_capture_truncate" on %s', relation);
    perform duplex.unguard_partitions();
    -- Only now that the triggers are gone nobody writes there any more.
    perform duplex.drop_registers(relation);
end
$$;
comment on function duplex.disable(regclass) is
    'This table''s changes stay here from now on, and peers'' changes to it stop their streams: disable it there first.';

create function duplex.enable_schema(name name) returns setof regclass
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    schema oid := to_regnamespace(quote_ident(enable_schema.name));
    unfit  text;
    relation regclass;
begin
    if schema is null then
        raise exception 'schema "%" does not exist', enable_schema.name
            using errcode = 'invalid_schema_name', hint = 'Give its name as it is, without quotes.';
    end if;
    -- All or none: a table that was passed over would be missed only when its rows are.
    select string_agg(format('%s (%s)', u.message, u.hint), E'\n' order by c.relname) into unfit
      from pg_class c cross join duplex.unfit(c.oid) u
     where c.relnamespace = schema and c.relkind in ('r', 'p') and not c.relispartition
       and not exists (select from duplex.table_registry t where t.relid = c.oid);
    if unfit is not null then
        raise exception 'schema "%" has tables that cannot be replicated', enable_schema.name
            using errcode = 'object_not_in_prerequisite_state', detail = unfit,
                  hint = 'Mend them, or enable the other tables one by one with duplex.enable.';
    end if;
    for relation in
        select c.oid::regclass from pg_class c
         where c.relnamespace = schema and c.relkind in ('r', 'p') and not c.relispartition
           and not exists (select from duplex.table_registry t where t.relid = c.oid)
         order by c.relname
    loop
        perform duplex.enable(relation);
        return next relation;
    end loop;
end
$$;
comment on function duplex.enable_schema(name) is
    'Enables every table of a schema that is not enabled yet, and returns them. Tables made later are not covered.';

create function duplex.forget_dropped_tables() returns event_trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    relation oid;
begin
    for relation in
        delete from duplex.table_registry t
         using pg_event_trigger_dropped_objects() d
         where d.classid = 'pg_class'::regclass and d.objsubid = 0 and t.relid = d.objid
     returning t.relid
    loop
        perform duplex.drop_registers(relation);
    end loop;
    perform duplex.fit_registers(r.relid)
       from duplex.registers r
       join pg_event_trigger_dropped_objects() d on d.classid = 'pg_class'::regclass and r.of_index = d.objid
       join pg_class c on c.oid = r.relid
      group by r.relid;
end
$$;
create event trigger duplex_forget_dropped_tables on sql_drop
    when tag in ('DROP TABLE', 'DROP SCHEMA', 'DROP OWNED', 'DROP INDEX', 'ALTER TABLE')
    execute function duplex.forget_dropped_tables();
