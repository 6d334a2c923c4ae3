-- What people look at.

create view duplex.tables as
select t.relid::regclass as "table",
       c.relkind = 'p' as partitioned,
       t.resolution,
       t.delta_columns,
       t.enabled_at,
       coalesce(t.error_policy, n.error_policy) as error_policy
  from duplex.table_registry t
  join pg_catalog.pg_class c on c.oid = t.relid
  cross join duplex.node n;
comment on view duplex.tables is 'The tables that take part.';

-- The progress of a replication origin may only be read by superusers, and a view's reader is who calls its functions.
create function duplex.next_offset(peer text) returns bigint
    language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select coalesce(
        (select p.start_offset from duplex.peer_registry p where p.name = next_offset.peer),
        (select max(pg_replication_origin_progress(o.roname, false) - '0/0'::pg_lsn)
           from pg_replication_origin o
           join pg_database d on o.roname = 'duplex_' || d.oid || '_' || next_offset.peer
          where d.datname = current_database()),
        0)::bigint
$$;
comment on function duplex.next_offset(text) is
    'Kafka offset of the next record of that peer''s stream to apply; 0 before the first.';

create view duplex.peers as
select p.name,
       case when h.held then 'paused' else p.state end as state,
       case when h.held
            then format('held by %s since %s; duplex.resume_peer(%L) lets it go on%s', p.paused_by, p.paused_at, p.name,
                        case when p.paused_others_wait then '; transactions of others that follow on it wait' else '' end)
            else p.reason
       end as reason,
       p.state_changed_at,
       duplex.next_offset(p.name) as next_offset,
       p.node_id,
       p.generation,
       p.settled,
       p.held,
       p.heard_at,
       p.clock_skew,
       p.skip_next,
       p.added_at,
       p.kafka_cluster,
       (select count(*) from duplex.parked k where k.peer = p.name) as parked,
       e.failed_change,
       p.paused_at
  from duplex.peer_registry p
 cross join lateral (select p.paused_at is not null and p.state not in ('stopped', 'gap') as held) h
  left join lateral (
      select pg_catalog.to_jsonb(f) - '{peer,resolution,resolved_at,resolved_by}'::text[] as failed_change
        from duplex.apply_errors f
       where f.peer = p.name and f.resolution is null
       order by f.id desc limit 1
  ) e on true;
comment on view duplex.peers is 'The nodes whose streams are applied here, and how that is going.';
comment on column duplex.peers.state is
    'waiting: no stream yet; running; retrying: a passing error; paused: an operator holds it; stopped: a change cannot be applied; gap: Kafka no longer has what comes next.';
comment on column duplex.peers.reason is 'Why it is not running, and what to do.';
comment on column duplex.peers.settled is
    'The peer''s watermark W: nothing that is stamped at or before will come from it any more. Null before it has said so.';
comment on column duplex.peers.held is 'The peer''s watermark S: the least W that it holds itself, its own included.';
comment on column duplex.peers.heard_at is
    'When its watermarks and its clock were last written down here: every few seconds where something waits for them, else every minute.';
comment on column duplex.peers.clock_skew is
    'The stamp of the record from then less the local clock at its arrival: the peer''s clock is ahead by at least so much. Below zero: by so much it is behind, or so long the record was on its way.';
comment on column duplex.peers.failed_change is 'The very change at which the stream stands still: its row of duplex.apply_errors.';
comment on column duplex.peers.parked is 'Changes of this peer that wait in duplex.parked.';
comment on column duplex.peers.paused_at is 'Since when an operator holds the stream, also where it has stopped besides.';
comment on column duplex.peers.next_offset is 'Kafka offset of the next record to apply: all before it are applied, durably or about to be.';

create view duplex.queue as
select lsn, xid, chunk, piece, expanded_len, payload from duplex.queue_0
union all
select lsn, xid, chunk, piece, expanded_len, payload from duplex.queue_1
union all
select lsn, xid, chunk, piece, expanded_len, payload from duplex.queue_2;
comment on view duplex.queue is 'The queue as one: its three tables take turns.';

create view duplex.queue_status as
select count(distinct q.xid) as transactions,
       count(q.xid) as "rows",
       coalesce(sum(length(q.payload)), 0)::bigint as bytes,
       clock_timestamp() - min(pg_catalog.pg_xact_commit_timestamp(q.xid::xid)) as oldest,
       pg_catalog.pg_table_size('duplex.queue_0') + pg_catalog.pg_table_size('duplex.queue_1')
           + pg_catalog.pg_table_size('duplex.queue_2') as disk_bytes
  from duplex.drain_state s
  left join duplex.queue q
    on not pg_catalog.pg_visible_in_snapshot(q.xid, s.previous)
   and not (pg_catalog.pg_visible_in_snapshot(q.xid, s.current) and (q.lsn, q.xid::text::bigint) <= (s.lsn, s.xid));
comment on view duplex.queue_status is 'What is captured and not yet acknowledged by Kafka.';
comment on column duplex.queue_status.oldest is 'Age of the oldest such transaction.';
