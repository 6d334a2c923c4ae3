-- What becomes of a change that cannot be applied: it stops its peer's stream, or it is parked.

create function duplex.set_error_policy(policy text) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if policy is null or policy not in ('stop', 'park') then
        raise exception 'invalid error policy: "%"', coalesce(policy, '<null>')
            using errcode = 'invalid_parameter_value', hint = 'It is "stop" or "park".';
    end if;
    update duplex.node set error_policy = policy;
    if not found then
        raise exception 'this database is not a pg_duplex node yet'
            using errcode = 'object_not_in_prerequisite_state', hint = 'Call duplex.create_node(''a name'') first.';
    end if;
end
$$;
comment on function duplex.set_error_policy(text) is
    'stop: a change that cannot be applied stops its peer''s stream; park: it waits, and all else goes on. For tables without a policy of their own.';

create function duplex.set_error_policy(relation regclass, policy text) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if policy is not null and policy not in ('stop', 'park') then
        raise exception 'invalid error policy: "%"', policy
            using errcode = 'invalid_parameter_value', hint = 'It is "stop", "park", or null for the node''s.';
    end if;
    update duplex.table_registry t set error_policy = policy where t.relid = relation;
    if not found then
        raise exception 'table % is not enabled', relation
            using errcode = 'undefined_object', hint = 'The view duplex.tables lists the enabled tables.';
    end if;
end
$$;
comment on function duplex.set_error_policy(regclass, text) is 'The same for one table; null gives it the node''s policy again.';

create function duplex.retry_parked() returns bigint
    language sql volatile security definer set search_path = pg_catalog, pg_temp
as $$
    with due as (update duplex.parked set due_at = clock_timestamp() where not waits returning 1)
    select count(*) from due
$$;
comment on function duplex.retry_parked() is
    'The cause is gone: parked changes are tried again now rather than later. Returns how many.';

create function duplex.drop_parked(id bigint) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    dropped duplex.parked;
begin
    delete from duplex.parked p where p.id = drop_parked.id returning * into dropped;
    if not found then
        raise exception 'no change is parked under number %', drop_parked.id
            using errcode = 'undefined_object', hint = 'The table duplex.parked shows what is.';
    end if;
    update duplex.apply_errors e
       set resolution = 'dropped', resolved_at = now(), resolved_by = session_user where e.id = dropped.error_id;
    -- What waited right behind it is next.
    update duplex.parked p set due_at = clock_timestamp()
     where p.table_name = dropped.table_name and p.key = dropped.key;
end
$$;
comment on function duplex.drop_parked(bigint) is
    'Gives a parked change up, for good: this node will differ in what it changed. Recorded in duplex.apply_errors.';

-- Tells sessions that apply, by way of PostgreSQL's own invalidation, that what is parked is not what they know.
create function duplex.parked_has_changed() returns trigger
    language c
    as 'MODULE_PATHNAME', 'duplex_parked_has_changed';
comment on function duplex.parked_has_changed() is 'Trigger on duplex.parked.';
create trigger duplex_parked_has_changed after insert or delete or truncate on duplex.parked
    for each statement execute function duplex.parked_has_changed();
-- Sessions that apply are replicas.
alter table duplex.parked enable always trigger duplex_parked_has_changed;

create function duplex.retry_parked_after_ddl() returns event_trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    -- Never waits: a session that is trying one of them may itself be waiting for the table that was just altered.
    update duplex.parked p set due_at = clock_timestamp()
     where p.id in (select q.id from duplex.parked q where not q.waits for update skip locked);
end
$$;
comment on function duplex.retry_parked_after_ddl() is 'A table was altered: what is parked may go now.';
create event trigger duplex_retry_parked on ddl_command_end execute function duplex.retry_parked_after_ddl();

revoke execute on function duplex.parked_has_changed() from public;
