-- What `duplex-relay check` asks about the tables of a peer.

create function duplex.compare_table(descriptor jsonb, out severity text, out what text, out advice text)
    returns setof record
    language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    label    text := format('%I.%I', descriptor ->> 'schema', descriptor ->> 'name');
    relation oid  := (select c.oid
                        from pg_class c
                        join pg_namespace n on n.oid = c.relnamespace
                       where n.nspname = descriptor ->> 'schema' and c.relname = descriptor ->> 'name');
begin
    severity := 'failure';
    if relation is null then
        what := format('table %s does not exist here', label);
        advice := format('create it as it is on the peer, and select duplex.enable(%L)', label);
        return next;
        return;
    end if;
    if not exists (select from duplex.tables t where t."table" = relation) then
        what := format('table %s is not enabled here', label);
        advice := format('select duplex.enable(%L), or disable it on the peer', label);
        return next;
    end if;

    for what, advice in
        select format('table %s decides conflicts by %s here and by %s on the peer', label, h.policy, p.policy),
               format('let nobody write to it, and give it one policy on every node with duplex.set_policy(%L, …)', label)
          from duplex.tables t
         cross join duplex.policy_label(t.resolution, t.delta_columns) h (policy)
         cross join duplex.policy_label(
              descriptor ->> 'resolution',
              array(select d::name from jsonb_array_elements_text(descriptor -> 'delta_columns') d)) p (policy)
         where t."table" = relation and descriptor ? 'resolution' and h.policy <> p.policy
    loop
        return next;
    end loop;

    for what, advice in
        select format('column %I of table %s does not exist here', c.name, label),
               format('alter table %s add column %I %s', label, c.name, duplex.type_label(c.schema, c.type, c.modifier))
          from duplex.described_columns(descriptor) c
         where not exists (select from pg_attribute a
                            where a.attrelid = relation and a.attname = c.name and a.attnum > 0 and not a.attisdropped)
    loop
        return next;
    end loop;

    for what, advice in
        select format('column %I of table %s is not null and has no default, and the peer does not have it',
                      a.attname, label),
               'add it on the peer, or give it a default here'
          from pg_attribute a
         where a.attrelid = relation and a.attnum > 0 and not a.attisdropped
           and a.attnotnull and not a.atthasdef and a.attidentity = '' and a.attgenerated = ''
           and not exists (select from duplex.described_columns(descriptor) c where c.name = a.attname)
    loop
        return next;
    end loop;

    if not exists (
        select from pg_index i
         where i.indrelid = relation and i.indisunique and i.indisvalid and i.indimmediate and i.indpred is null
           and (select array_agg(a.attname::text order by a.attname::text)
                  from generate_series(0, i.indnkeyatts - 1) n
                  left join pg_attribute a on a.attrelid = relation and a.attnum = i.indkey[n])
               = (select array_agg(k order by k) from jsonb_array_elements_text(descriptor -> 'key') k))
    then
        what := format('table %s has no unique index on the key that the peer has (%s)', label,
                       (select string_agg(quote_ident(k), ', ') from jsonb_array_elements_text(descriptor -> 'key') k));
        advice := 'give the table the same primary key or replica identity index on every node';
        return next;
    end if;

    severity := 'note';
    advice := 'values go over as text; one that does not fit stops the stream';
    for what in
        select format('column %I of table %s is %s here and %s on the peer', c.name, label,
                      duplex.type_label(h.schema, h.type, h.modifier), duplex.type_label(c.schema, c.type, c.modifier))
          from duplex.described_columns(descriptor) c
          join pg_attribute a on a.attrelid = relation and a.attname = c.name and a.attnum > 0 and not a.attisdropped
         cross join duplex.base_type(a.atttypid, a.atttypmod) h
         where (h.schema, h.type, h.modifier) is distinct from (c.schema, c.type, c.modifier)
    loop
        return next;
    end loop;
end
$$;
comment on function duplex.compare_table(jsonb) is
    'Relay: what would hinder changes of a table, as a peer describes it, from being applied here; no row if nothing.';

create function duplex.described_columns(
    descriptor jsonb, out name text, out schema text, out type text, out modifier integer)
    returns setof record
    language sql immutable set search_path = pg_catalog, pg_temp
as $$
    select c ->> 'name', coalesce(c ->> 'type_schema', 'pg_catalog'), c ->> 'type_name', (c ->> 'type_modifier')::integer
      from jsonb_array_elements(descriptor -> 'columns') c
$$;
comment on function duplex.described_columns(jsonb) is 'The columns in a description of a table.';

create function duplex.policy_label(resolution text, delta_columns name[]) returns text
    language sql immutable set search_path = pg_catalog, pg_temp
as $$
    select resolution || coalesce(
        ' with delta columns (' || (select string_agg(d, ', ' order by d collate "C") from unnest(delta_columns) d) || ')', '')
$$;
comment on function duplex.policy_label(text, name[]) is 'A table''s conflict policy in words.';

-- A domain counts as the type below it.
create function duplex.base_type(
    type_oid oid, type_modifier integer, out schema text, out type text, out modifier integer)
    language sql stable set search_path = pg_catalog, pg_temp
as $$
    with recursive chain as (
        select t.oid, t.typtype, t.typbasetype, t.typtypmod, t.typname, t.typnamespace, type_modifier as modifier
          from pg_type t
         where t.oid = type_oid
        union all
        select t.oid, t.typtype, t.typbasetype, t.typtypmod, t.typname, t.typnamespace,
               case when c.modifier = -1 then c.typtypmod else c.modifier end
          from chain c
          join pg_type t on t.oid = c.typbasetype
         where c.typtype = 'd'
    )
    select n.nspname::text, c.typname::text, c.modifier
      from chain c
      join pg_namespace n on n.oid = c.typnamespace
     where c.typtype <> 'd'
$$;
comment on function duplex.base_type(oid, integer) is 'The type of a column''s values as a peer describes it.';

create function duplex.type_label(schema text, type text, modifier integer) returns text
    language sql stable set search_path = pg_catalog, pg_temp
as $$
    select coalesce(
        (select format_type(t.oid, type_label.modifier)
           from pg_type t
           join pg_namespace n on n.oid = t.typnamespace
          where n.nspname = type_label.schema and t.typname = type_label.type),
        format('%I.%I', type_label.schema, type_label.type))
$$;
comment on function duplex.type_label(text, text, integer) is 'A type as SQL writes it.';
