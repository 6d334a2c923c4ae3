-- Forgetting what no change asks for any more, and the small steps in which a node is looked after.

-- Times as registers have them.
create function duplex.micros(at timestamptz) returns bigint
    language sql immutable set search_path = pg_catalog, pg_temp
as $$
    select (extract(epoch from at - '2000-01-01 00:00:00+00'::timestamptz) * 1000000)::bigint
$$;
comment on function duplex.micros(timestamptz) is 'A time as microseconds since 2000.';

create function duplex.time_of(micros bigint) returns timestamptz
    language sql immutable set search_path = pg_catalog, pg_temp
as $$
    select '2000-01-01 00:00:00+00'::timestamptz + micros * interval '1 microsecond'
$$;
comment on function duplex.time_of(bigint) is 'The time that is so many microseconds after 2000.';

-- Where null stands, nothing may be forgotten.
create view duplex.watermarks as
with said as (
    select p.name as holder, 'peer' as what, false as own,
           duplex.micros(p.settled) as settled, duplex.micros(p.held) as held, coalesce(p.settled, p.added_at) as since
      from duplex.peer_registry p
    union all
    -- A database that was promoted may still have to take some of its own back from its topic: those are later than this.
    select n.name, 'this node', true, duplex.micros(s.settled), null, coalesce(s.settled, n.created_at)
      from duplex.node n
     cross join duplex.drain_state s
    union all
    -- Received and not applied.
    select k.peer, 'parked change', false, duplex.micros(min(k.commit_ts)) - 1, duplex.micros(min(k.commit_ts)) - 1,
           min(k.parked_at)
      from duplex.parked k
     group by k.peer
    union all
    -- What its first peer's stream begins with may be older than all that is here.
    select n.name, 'no peer yet', false, null, null, n.created_at
      from duplex.node n
     where not exists (select from duplex.peer_registry)
       and not exists (select from pg_catalog.pg_replication_origin o
                         join pg_catalog.pg_database d on d.datname = pg_catalog.current_database()
                        where pg_catalog.starts_with(o.roname, 'duplex_' || d.oid || '_'))
)
select s.holder, s.what, s.own, s.settled,
       case when s.own then (select case when count(*) = count(t.settled) then min(t.settled) end from said t)
            else s.held end as held,
       s.since
  from said s;
comment on view duplex.watermarks is
    'What holds this node''s memory: up to when nothing older comes from each holder, in microseconds since 2000.';
comment on column duplex.watermarks.settled is 'W: nothing stamped at or before will be applied here because of this holder.';
comment on column duplex.watermarks.held is 'S: the least W that the holder has itself.';

-- Without jit, here and below: compiling takes seconds, what these do takes milliseconds.
create function duplex.horizon_of(sums boolean) returns bigint
    language c strict stable security definer set search_path = pg_catalog, pg_temp set jit = off
    as 'MODULE_PATHNAME', 'horizon_of_wrapper';
comment on function duplex.horizon_of(boolean) is
    'Up to when registers may be forgotten, in microseconds since 2000: of tables with counters or merged columns, or of the others.';

-- The one place that says which of the two a table is.
create function duplex.keeps_sums(resolution text, delta_columns name[]) returns boolean
    language sql immutable set search_path = pg_catalog, pg_temp
as $$
    select resolution = 'column_merge' or cardinality(delta_columns) > 0
$$;
comment on function duplex.keeps_sums(text, name[]) is
    'Whether a table''s registers are needed until every node has received what they hold.';

create function duplex.horizon(relation oid) returns bigint
    language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select duplex.horizon_of(duplex.keeps_sums(t.resolution, t.delta_columns))
      from duplex.table_registry t
     where t.relid = relation
$$;
comment on function duplex.horizon(oid) is
    'Up to when a table''s registers may be forgotten, in microseconds since 2000; null while nothing may.';

create function duplex.register_is_empty(register oid) returns boolean
    language c strict volatile
    as 'MODULE_PATHNAME', 'register_is_empty_wrapper';
comment on function duplex.register_is_empty(oid) is
    'Whether a register''s file has no length. False, too, while somebody has it for himself.';

-- Asked by sessions at each heartbeat, their own and peers': is it worth a commit to write it down?
create function duplex.watermark_is_wanted(peer text) returns boolean
    language sql volatile security definer set search_path = pg_catalog, pg_temp set jit = off
as $$
    with w as materialized (select * from duplex.watermarks)
    select (exists (select from duplex.registers r where r.of_index <> r.relid and not duplex.register_is_empty(r.register))
            or exists (select from duplex.truncates))
       and exists (
           select from w mine
            where case when watermark_is_wanted.peer is null then mine.own
                       else mine.what = 'peer' and mine.holder = watermark_is_wanted.peer end
              and (mine.settled is null
                   or not exists (select from w o where o.holder <> mine.holder and (o.settled is null or o.settled < mine.settled))
                   or exists (select from duplex.table_registry t where duplex.keeps_sums(t.resolution, t.delta_columns))))
$$;
comment on function duplex.watermark_is_wanted(text) is
    'Whether something that could be forgotten waits for that peer''s watermark, or for this node''s own where it is null.';

create table duplex.sweeps (
    register     oid    primary key,
    next_page    bigint not null default 0,
    goal         bigint,
    forgotten_to bigint
) with (fillfactor = 50);
comment on table duplex.sweeps is 'How far each register was looked through for what may be forgotten.';
comment on column duplex.sweeps.goal is 'The horizon of the sweep that is under way.';
comment on column duplex.sweeps.forgotten_to is 'The horizon of the last sweep that came to the end.';

-- One step of a sweep. Waits for nobody: a row that a writer is just replacing goes with that writer, and a register that
-- is being made anew is left alone.
create function duplex.sweep(register regclass, horizon bigint, at_most integer, out forgotten integer, out unfinished boolean)
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    -- More pages are not looked at in one step, however little is found on them.
    pages_a_step constant bigint := 256;
    pages bigint;
    state duplex.sweeps;
    -- What is left of counters is nowhere else.
    releasable text := case when exists (select from pg_attribute a where a.attrelid = register and a.attname = 'residual')
                            then 'not exists (select from unnest(t.residual) r where r <> 0)' else 'true' end;
begin
    forgotten := 0;
    unfinished := false;
    select s.* into state from duplex.sweeps s where s.register = sweep.register;
    if (state.goal is null and state.forgotten_to >= horizon) or duplex.register_is_empty(register) then
        return;
    end if;
    begin
        execute format('lock table %s in row exclusive mode nowait', register);
    exception when lock_not_available or undefined_table then
        return;
    end;
    pages := pg_relation_size(register) / current_setting('block_size')::bigint;
    if state.goal is null then
        state.goal := horizon;
        state.next_page := 0;
    end if;
    execute format(
        'delete from %1$s where ctid = any (array(
             select t.ctid from %1$s t
              where t.ctid >= %2$L::tid and t.ctid < %3$L::tid
                and %4$s
                and case when t.commit_ts is not null then t.commit_ts <= $1
                         else coalesce(pg_xact_commit_timestamp(t.xmin) <= $2, true) end
              limit $3 for update skip locked))',
        register, format('(%s,0)', state.next_page), format('(%s,0)', state.next_page + pages_a_step), releasable)
      using state.goal, duplex.time_of(state.goal), at_most;
    get diagnostics forgotten = row_count;
    if forgotten < at_most then
        state.next_page := state.next_page + pages_a_step;
        if state.next_page >= pages then
            state.forgotten_to := state.goal;
            state.goal := null;
        end if;
    end if;
    unfinished := state.goal is not null;
    insert into duplex.sweeps as s values (register, state.next_page, state.goal, state.forgotten_to)
    on conflict on constraint sweeps_pkey do update
       set next_page = excluded.next_page, goal = excluded.goal, forgotten_to = excluded.forgotten_to;
end
$$;
comment on function duplex.sweep(regclass, bigint, integer) is 'One step of looking through a register for what may be forgotten.';

create function duplex.forget(at_most integer default 10000) returns boolean
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set jit = off
as $$
declare
    rest     integer := at_most;
    more     boolean := false;
    register record;
    step     record;
begin
    -- One at a time, and nobody waits.
    if not pg_try_advisory_xact_lock(x'64757078'::integer, 3) then
        return false;
    end if;
    delete from duplex.truncates where ctid = any (array(
        select t.ctid from duplex.truncates t
         where coalesce(t.commit_ts, duplex.micros(pg_xact_commit_timestamp(t.xmin)), 0) <= duplex.horizon(t.relid)
           for update skip locked));
    delete from duplex.sweeps s
     where not exists (select from duplex.registers r where r.register = s.register);
    -- Who has waited longest comes first.
    for register in
        select r.register, h.horizon
          from duplex.registers r
         cross join lateral (select duplex.horizon(r.relid)) h (horizon)
          left join duplex.sweeps s on s.register = r.register
         -- The versions of rows are kept for as long as the rows are.
         where h.horizon is not null and r.of_index <> r.relid
         order by s.forgotten_to nulls first, r.register
    loop
        if rest <= 0 then
            return true;
        end if;
        step := duplex.sweep(register.register, register.horizon, rest);
        rest := rest - step.forgotten;
        more := more or step.unfinished;
    end loop;
    return more;
end
$$;
comment on function duplex.forget(integer) is
    'Removes at most so many rows of registers that no change on its way can ask for. Returns whether there is more to look at.';

create function duplex.maintain() returns boolean
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set jit = off
as $$
declare
    lacks boolean;
begin
    perform duplex.clean_conflict_history();
    -- Where REINDEX CONCURRENTLY gave an index another oid; PostgreSQL tells nobody.
    perform duplex.fit_registers(r.relid)
       from duplex.registers r
      where r.of_index <> 0 and not exists (select from pg_class c where c.oid = r.of_index)
      group by r.relid;
    -- The clock here has come so close to the transaction's stamp that the rest can be waited for.
    perform duplex.retry_peer(p.name)
       from duplex.peer_registry p
      where p.state = 'stopped'
        and p.stamped_ahead <= clock_timestamp() + current_setting('duplex.max_clock_skew')::interval;
    lacks := not duplex.catch_up();
    -- Last, since it keeps rows locked to the end of the transaction.
    return duplex.forget() or lacks;
end
$$;
comment on function duplex.maintain() is
    'Relay, every few seconds: what has to be looked after in small steps. Returns whether it is to be called again soon.';
