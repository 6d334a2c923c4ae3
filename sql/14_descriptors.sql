-- Descriptors on record: a transaction of a few rows need not bring those of its tables into the queue each time. They are noted
-- when a table is enabled, and when it changes; until then, and where that was missed, rows bring them along.

create function duplex.describe(relation oid) returns bytea
    language c strict volatile
    as 'MODULE_PATHNAME', 'describe_wrapper';
comment on function duplex.describe(oid) is
    'What a stream says of a table before its first row; null if it has no key.';

create function duplex.note_descriptors(relation regclass) returns void
    language sql volatile security definer set search_path = pg_catalog, pg_temp
as $$
    insert into duplex.descriptors (digest, descriptor)
    select encode(substr(sha256(d.descriptor), 1, 16), 'hex')::uuid, d.descriptor
      from (select duplex.describe(m.relid) as descriptor
              from (select relation union select p.relid from pg_partition_tree(relation) p) m (relid)) d
     where d.descriptor is not null
        on conflict do nothing
$$;
comment on function duplex.note_descriptors(regclass) is
    'Puts a table and its partitions on record as they are, so that the queue need not describe them. Called by itself where they change.';

create function duplex.note_changed_tables() returns event_trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform duplex.note_descriptors(d.relation)
       from (select distinct c.objid::regclass as relation from pg_event_trigger_ddl_commands() c
              where c.classid = 'pg_class'::regclass) d
      where exists (select from duplex.table_registry t
                     where t.relid = coalesce(pg_partition_root(d.relation), d.relation));
end
$$;
create event trigger duplex_note_changed_tables on ddl_command_end when tag in ('CREATE TABLE', 'ALTER TABLE')
    execute function duplex.note_changed_tables();
