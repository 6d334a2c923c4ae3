-- This database as a node, and the peers whose streams it applies.

create function duplex.check_name(name text) returns void
    language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    -- The name becomes part of a Kafka topic and of a replication origin.
    if name is null or name !~ '^[a-z0-9][a-z0-9_-]{0,62}$' then
        raise exception 'invalid node name: "%"', coalesce(name, '<null>')
            using errcode = 'invalid_name',
                  hint = 'Use 1 to 63 lower-case letters, digits, "_" and "-", beginning with a letter or digit.';
    end if;
end
$$;

create function duplex.create_node(name text) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    existing text := (select n.name from duplex.node n);
begin
    perform duplex.check_name(create_node.name);
    if existing is not null then
        raise exception 'this database is node "%" already', existing
            using errcode = 'duplicate_object',
                  hint = 'A database is one node; to start over, drop the extension and create it again.';
    end if;
    if current_setting('track_commit_timestamp') <> 'on' then
        raise exception 'pg_duplex needs commit timestamps, and track_commit_timestamp is off'
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'Run "alter system set track_commit_timestamp = on" and restart the server.';
    end if;
    if current_setting('server_encoding') <> 'UTF8' then
        raise exception 'pg_duplex needs a database in UTF8, and this one is in %', current_setting('server_encoding')
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'Create the database with "encoding ''UTF8''".';
    end if;
    -- What an earlier life of this database had applied says nothing about this one.
    perform pg_replication_origin_drop(o.roname)
       from pg_replication_origin o
       join pg_database d on d.datname = current_database()
      where starts_with(o.roname, 'duplex_' || d.oid || '_');
    insert into duplex.node (name, timeline) values (create_node.name, duplex.timeline());
    insert into duplex.drain_state (previous, current) values (pg_current_snapshot(), pg_current_snapshot());
end
$$;
comment on function duplex.create_node(text) is
    'Makes this database a node; its changes go to the Kafka topic duplex.<name>.';

create function duplex.add_peer(name text) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    own text := (select n.name from duplex.node n);
begin
    perform duplex.check_name(add_peer.name);
    if own is null then
        raise exception 'this database is not a pg_duplex node yet'
            using errcode = 'object_not_in_prerequisite_state', hint = 'Call duplex.create_node(''a name'') first.';
    elsif own = add_peer.name then
        raise exception 'node "%" cannot be its own peer', own
            using errcode = 'invalid_parameter_value', hint = 'Name the other database''s node.';
    end if;
    insert into duplex.peer_registry (name) values (add_peer.name);
exception when unique_violation then
    raise exception 'node "%" is a peer already', add_peer.name
        using errcode = 'duplicate_object', hint = 'The view duplex.peers lists them.';
end
$$;
comment on function duplex.add_peer(text) is
    'From now on the relay applies that node''s stream here. A peer added again goes on where it had stopped.';

create function duplex.remove_peer(name text) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    delete from duplex.peer_registry p where p.name = remove_peer.name;
    if not found then
        raise exception 'node "%" is not a peer', remove_peer.name
            using errcode = 'undefined_object', hint = 'The view duplex.peers lists them.';
    end if;
end
$$;
comment on function duplex.remove_peer(text) is
    'The relay stops applying that node''s stream within seconds. How far it had come is kept.';
