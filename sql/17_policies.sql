-- How a table decides between two writes of one row. The policy travels with the table's description, and a node takes
-- changes only from nodes that have the same.

-- Why a table cannot have a policy: sqlstate, message and hint, or no row if it can.
create function duplex.unfit_policy(relation regclass, resolution text, delta_columns name[],
                                    out sqlstate text, out message text, out hint text)
    returns setof record
    language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    members constant oid[] := array(select p.relid::oid from pg_partition_tree(relation) p union select relation::oid);
    delta  name;
    number smallint;
    type   text;
begin
    if resolution is null or resolution not in ('last_update_wins', 'column_merge') then
        sqlstate := '22023';
        message := format('"%s" is no way to decide conflicts', resolution);
        hint := 'It is last_update_wins or column_merge.';
        return next;
        return;
    end if;
    if delta_columns is null or array_position(delta_columns, null) is not null then
        sqlstate := '22004';
        message := 'delta columns cannot be NULL';
        hint := 'A table without delta columns has an empty array of them.';
        return next;
        return;
    end if;
    if cardinality(delta_columns) <> (select count(distinct d) from unnest(delta_columns) d) then
        sqlstate := '42701';
        message := 'a delta column is named twice';
        hint := 'Name each column once.';
        return next;
    end if;
    foreach delta in array delta_columns loop
        select a.attnum, format_type(a.atttypid, a.atttypmod) into number, type
          from pg_attribute a
         where a.attrelid = relation and a.attname = delta and a.attnum > 0 and not a.attisdropped;
        if not found then
            sqlstate := '42703';
            message := format('delta column "%s" of table %s does not exist', delta, relation);
            hint := 'Name columns as they are, without quotes.';
            return next;
        elsif exists (select from pg_attribute a
                       where a.attrelid = relation and a.attnum = number and a.attgenerated <> '') then
            sqlstate := '42P10';
            message := format('column "%s" of table %s is generated and cannot be a delta column', delta, relation);
            hint := 'What it is made of can be one.';
            return next;
        elsif (select b.schema <> 'pg_catalog' or b.type not in ('int2', 'int4', 'int8', 'numeric')
                 from pg_attribute a cross join duplex.base_type(a.atttypid, a.atttypmod) b
                where a.attrelid = relation and a.attnum = number) then
            sqlstate := '42804';
            message := format('column "%s" of table %s is %s, which cannot be added exactly', delta, relation, type);
            hint := 'Delta columns are smallint, integer, bigint or numeric.';
            return next;
        elsif exists (select from pg_index i
                       where i.indrelid = any (members) and (i.indisunique or i.indisexclusion)
                         and duplex.index_uses(i.indexrelid, delta)) then
            sqlstate := '42P10';
            message := format('column "%s" of table %s is part of its key or of a unique index and cannot be a delta column',
                              delta, relation);
            hint := 'A sum is nobody''s claim of a value.';
            return next;
        elsif exists (select from pg_constraint c
                       where c.conrelid = relation and c.contype = 'f' and number = any (c.conkey)) then
            sqlstate := '42P10';
            message := format('column "%s" of table %s refers to another table and cannot be a delta column',
                              delta, relation);
            hint := 'A sum refers to nothing.';
            return next;
        end if;
    end loop;
end
$$;

-- Whether an index depends on a column, be it in an expression, a predicate, or what a generated column is made of.
create function duplex.index_uses(index oid, column_name name) returns boolean
    language sql stable set search_path = pg_catalog, pg_temp
as $$
    with of_index as (
        select i.indrelid, i.indkey from pg_index i where i.indexrelid = index
    ), used as (
        select k.attnum::integer from of_index, unnest(indkey::smallint[]) k (attnum) where k.attnum > 0
        union
        select d.refobjsubid from of_index, pg_depend d
         where d.classid = 'pg_class'::regclass and d.objid = index
           and d.refclassid = 'pg_class'::regclass and d.refobjid = indrelid and d.refobjsubid > 0
    ), wanted as (
        select a.attnum::integer, a.attrelid from of_index, pg_attribute a
         where a.attrelid = indrelid and a.attname = column_name and a.attnum > 0
    )
    select exists (
        select from wanted w
         where w.attnum in (select u.attnum from used u)
            or exists (select from used u
                         join pg_attribute g on g.attrelid = w.attrelid and g.attnum = u.attnum and g.attgenerated <> ''
                         left join pg_attrdef f on f.adrelid = g.attrelid and f.adnum = g.attnum
                         join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = w.attrelid
                                         and d.refobjsubid = w.attnum
                                         and (d.classid = 'pg_class'::regclass and d.objid = w.attrelid and d.objsubid = g.attnum
                                              or d.classid = 'pg_attrdef'::regclass and d.objid = f.oid)))
$$;

create function duplex.set_policy(relation regclass, resolution text default 'last_update_wins',
                                  delta_columns name[] default '{}') returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    problem record;
begin
    if not pg_has_role(session_user, (select c.relowner from pg_class c where c.oid = relation), 'usage') then
        raise exception 'must be owner of table %', relation using errcode = 'insufficient_privilege';
    end if;
    if not exists (select from duplex.table_registry t where t.relid = relation) then
        raise exception 'table % is not enabled', relation
            using errcode = 'undefined_object', hint = 'The view duplex.tables lists the enabled tables.';
    end if;
    select * into problem from duplex.unfit_policy(relation, resolution, delta_columns);
    if found then
        raise exception '%', problem.message using errcode = problem.sqlstate, hint = problem.hint;
    end if;
    -- Writers are out from here on: what they captured before was captured under the policy that goes.
    execute format('lock table %s in share row exclusive mode', relation);
    update duplex.table_registry t
       set resolution = set_policy.resolution, delta_columns = set_policy.delta_columns
     where t.relid = relation;
    perform duplex.fit_registers(relation);
    perform duplex.guard_kept(relation);
    perform duplex.announce(relation);
    perform duplex.note_descriptors(relation);
end
$$;
comment on function duplex.set_policy(regclass, text, name[]) is
    'How conflicts of this table are decided from now on. Nobody may write to it, on any node, from before the first node''s call to after the last one''s.';

-- What rows hold when a table is emptied is looked at before it is.
create function duplex.guard_kept(relation regclass) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if (select k.kept is null from duplex.kept(relation) k)
       or exists (select from pg_trigger t where t.tgrelid = relation and t.tgname = '00_duplex_before_truncate') then
        return;
    end if;
    execute format('create trigger "00_duplex_before_truncate" before truncate on %s '
                   'for each statement execute function duplex.capture_truncate()', relation);
    execute format('alter trigger "00_duplex_before_truncate" on %s depends on extension pg_duplex', relation);
    execute format('alter table only %s enable always trigger "00_duplex_before_truncate"', relation);
end
$$;

-- Whether a table still fits its policy after it was altered; an error if not.
create function duplex.check_policy(relation regclass) returns void
    language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    problem record;
begin
    select u.* into problem
      from duplex.table_registry t
     cross join duplex.unfit_policy(t.relid, t.resolution, t.delta_columns) u
     where t.relid = relation and cardinality(t.delta_columns) > 0;
    if found then
        raise exception '%', problem.message
            using errcode = problem.sqlstate, hint = 'Set another policy with duplex.set_policy first, on every node.';
    end if;
end
$$;
