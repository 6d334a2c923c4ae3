-- An operator holds a peer's stream, for as long as that takes: before a change of tables, to look at something, in an exercise.
--
-- Held is not a state that the relay reports but a wish that outlives it, so it has columns of its own. A stream that has
-- stopped, or has a gap, is shown as that even where it is held as well: nothing may hide an error.

create function duplex.pause_peer(name text, others_wait boolean default false) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if others_wait is null then
        raise exception 'whether others wait is true or false' using errcode = 'null_value_not_allowed';
    end if;
    update duplex.peer_registry p
       set paused_at = coalesce(p.paused_at, now()),
           paused_by = case when p.paused_at is null then session_user else p.paused_by end,
           paused_others_wait = pause_peer.others_wait
     where p.name = pause_peer.name;
    if not found then
        raise exception 'node "%" is not a peer', pause_peer.name
            using errcode = 'undefined_object', hint = 'The view duplex.peers lists them.';
    end if;
end
$$;
comment on function duplex.pause_peer(text, boolean) is
    'Nothing more of that peer''s stream is applied here, from the end of a transaction within a second or two, until duplex.resume_peer. If others wait, transactions of other peers that were made after held ones are held too.';

create function duplex.resume_peer(name text) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    update duplex.peer_registry p
       set paused_at = null, paused_by = null, paused_others_wait = false,
           state = case when p.state in ('stopped', 'gap') then p.state else 'waiting' end,
           reason = case when p.state in ('stopped', 'gap') then p.reason end,
           state_changed_at = now()
     where p.name = resume_peer.name and p.paused_at is not null;
    if found then
        return;
    end if;
    if not exists (select from duplex.peer_registry p where p.name = resume_peer.name) then
        raise exception 'node "%" is not a peer', resume_peer.name
            using errcode = 'undefined_object', hint = 'The view duplex.peers lists them.';
    end if;
    raise exception 'the stream of node "%" is not paused', resume_peer.name
        using errcode = 'object_not_in_prerequisite_state',
              hint = 'The view duplex.peers shows what state each stream is in.';
end
$$;
comment on function duplex.resume_peer(text) is
    'That peer''s stream goes on, within a second or two, where duplex.pause_peer had held it.';
