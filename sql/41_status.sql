-- A node at a glance. Each fact has its own place (duplex.peers, queue_status, registers_status); here they meet.

create function duplex.register_rows(register oid) returns bigint
    language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
declare
    counted bigint;
begin
    if exists (select from duplex.registers r where r.register = register_rows.register) then
        execute format('select count(*) from %s', register::regclass) into counted;
    end if;
    return counted;
end
$$;
comment on function duplex.register_rows(oid) is 'How many rows a register has now; null if it is none.';

create view duplex.registers_status as
select r.relid::regclass as "table",
       case r.of_index when 0 then 'tombstones' when r.relid then 'versions' else 'claims' end as kind,
       nullif(nullif(r.of_index, 0), r.relid)::regclass as of_index,
       duplex.register_rows(r.register) as "rows",
       pg_catalog.pg_total_relation_size(r.register) as bytes,
       case when r.of_index <> r.relid then duplex.time_of(duplex.horizon(r.relid)) end as forgotten_to
  from duplex.registers r
union all
select t.relid::regclass, 'truncate', null, count(*), 0, duplex.time_of(duplex.horizon(t.relid))
  from duplex.truncates t
 group by t.relid;
comment on view duplex.registers_status is 'What is remembered of each table beside its rows.';
comment on column duplex.registers_status.kind is
    'tombstones: keys that are gone or hidden; claims: unique values that were held once; versions: of rows that a change that lost has added to, kept as long as the rows; truncate: the newest TRUNCATE.';
comment on column duplex.registers_status.forgotten_to is 'What is older may be forgotten, and is by and by. Null: nothing may be.';

create view duplex.status as
with holder as (
    select w.holder, w.what, w.since,
           case when s.sums then w.held else w.settled end as mark
      from duplex.watermarks w
     cross join (select exists (select from duplex.table_registry t
                                 where duplex.keeps_sums(t.resolution, t.delta_columns))) s (sums)
     order by mark nulls first, w.own, w.holder
     limit 1
)
select n.name as node,
       duplex.time_of(h.mark) as forgotten_to,
       h.holder as held_by,
       h.what as held_because,
       h.since as held_since,
       r."rows" as register_rows,
       r.bytes as register_bytes,
       q.transactions as queued,
       q.bytes as queued_bytes,
       q.oldest as oldest_queued,
       (select count(*) from duplex.parked) as parked,
       array(select n.name where n.replay_stopped is not null)
           || array(select p.name from duplex.peers p where p.state in ('stopped', 'gap', 'paused') order by p.name)
           as standing_still,
       duplex.lacks() as lacks,
       n.replay_stopped
  from duplex.node n
  left join holder h on true
 cross join (select coalesce(sum(s."rows"), 0)::bigint, coalesce(sum(s.bytes), 0)::bigint
               from duplex.registers_status s) r ("rows", bytes)
 cross join duplex.queue_status q;
comment on view duplex.status is 'This node at a glance.';
comment on column duplex.status.forgotten_to is
    'What registers remember from before is forgotten by and by. Null: nothing may be.';
comment on column duplex.status.held_by is 'The node because of which nothing later may be forgotten.';
comment on column duplex.status.held_because is
    'peer: its stream is applied up to there; this node: its own is published up to there; parked change: one of that node waits in duplex.parked; no peer yet.';
comment on column duplex.status.held_since is
    'Up to when it has been heard of, when it was added if never, or when the change was parked.';
comment on column duplex.status.lacks is
    'What this database had applied before its server was promoted and has not caught up with; null if nothing.';
comment on column duplex.status.standing_still is
    'Nodes whose streams wait for a person: see duplex.peers, and of this node itself replay_stopped.';
comment on column duplex.status.replay_stopped is
    'Why bringing back what this server had lost of its own stream, before it was promoted, stands still, and with it publishing; null if it does not.';
