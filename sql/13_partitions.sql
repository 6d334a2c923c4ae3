-- Truncating a single partition of an enabled table. A statement trigger is no partition's by inheritance, so each gets
-- its own, whenever it becomes one, and loses it when it is one no longer. They refuse what would not be replicated.

create function duplex.guard_partitions(relation regclass) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    guard record;
begin
    if not exists (select from duplex.table_registry t where t.relid = pg_partition_root(relation)) then
        return;
    end if;
    for guard in
        select p.relid as member, k.name, k.timing
          from pg_partition_tree(relation) p
         cross join (values ('00_duplex_before_truncate', 'before'), ('00_duplex_capture_truncate', 'after')) k (name, timing)
    loop
        -- Looked up each time: enabling one brings the event trigger below here, for a member and all that it has.
        continue when exists (select from pg_trigger t where t.tgrelid = guard.member and t.tgname = guard.name);
        execute format('create trigger %I %s truncate on %s for each statement execute function duplex.capture_truncate()',
                       guard.name, guard.timing, guard.member);
        execute format('alter trigger %I on %s depends on extension pg_duplex', guard.name, guard.member);
        execute format('alter table only %s enable always trigger %I', guard.member, guard.name);
    end loop;
end
$$;

create function duplex.unguard_partitions() returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    stray record;
begin
    for stray in
        select t.tgname as name, t.tgrelid::regclass as relation from pg_trigger t
         where t.tgfoid = 'duplex.capture_truncate'::regproc
           and not exists (select from duplex.table_registry r
                            where r.relid = coalesce(pg_partition_root(t.tgrelid), t.tgrelid))
    loop
        execute format('drop trigger %I on %s', stray.name, stray.relation);
    end loop;
end
$$;

create function duplex.follow_partitions() returns event_trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform duplex.guard_partitions(p.relation)
       from (select distinct d.objid::regclass as relation from pg_event_trigger_ddl_commands() d
              where d.classid = 'pg_class'::regclass and d.objsubid = 0) p
       join pg_class c on c.oid = p.relation and (c.relkind = 'p' or c.relispartition);
    if tg_tag = 'ALTER TABLE' then
        perform duplex.unguard_partitions();
    end if;
end
$$;
create event trigger duplex_follow_partitions on ddl_command_end when tag in ('CREATE TABLE', 'ALTER TABLE')
    execute function duplex.follow_partitions();
