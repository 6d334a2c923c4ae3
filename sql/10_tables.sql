-- What a node knows: who it is, which tables and peers take part, what is still to be sent.
-- Nothing here is for applications. Views (40_views.sql) show it; functions change it.

create table duplex.node (
    singleton  boolean     primary key default true check (singleton),
    name       text        not null,
    node_id    uuid        not null default gen_random_uuid(),
    created_at timestamptz not null default now(),
    error_policy text      not null default 'stop' check (error_policy in ('stop', 'park')),
    kafka_cluster text,
    timeline   integer     not null,
    replay_stopped   text,
    replay_skip_next boolean not null default false
);
comment on table duplex.node is 'This database as a node: one row, written by duplex.create_node.';
comment on column duplex.node.error_policy is 'What becomes of a change that cannot be applied, for tables that have no policy of their own.';
comment on column duplex.node.kafka_cluster is 'The Kafka cluster that this node publishes to; null before the first time.';
comment on column duplex.node.timeline is
    'The timeline of the server''s WAL on which the relay last looked whether the database has what its own stream says it had.';

comment on column duplex.node.replay_stopped is
    'Why bringing back what a promoted server had lost of its own stream stands still; null if it does not.';
comment on column duplex.node.replay_skip_next is 'An operator said to leave out the transaction at which it stands still.';

create table duplex.table_registry (
    relid         oid         primary key,
    resolution    text        not null default 'last_update_wins',
    delta_columns name[]      not null default '{}',
    enabled_at    timestamptz not null default now(),
    error_policy  text        check (error_policy in ('stop', 'park'))
);
comment on table duplex.table_registry is 'Tables that take part, by oid. Partitions are covered by their root.';

create table duplex.peer_registry (
    name             text        primary key,
    added_at         timestamptz not null default now(),
    node_id          uuid,
    generation       bigint      not null default 0,
    last_lsn         bigint      not null default 0,
    last_xid         bigint      not null default 0,
    settled          timestamptz,
    held             timestamptz,
    heard_at         timestamptz,
    clock_skew       interval,
    stamped_ahead    timestamptz,
    state            text        not null default 'waiting'
        check (state in ('waiting', 'running', 'retrying', 'stopped', 'gap')),
    reason           text,
    skip_next        boolean     not null default false,
    state_changed_at timestamptz not null default now(),
    hello_offset     bigint,
    kafka_cluster    text,
    start_offset     bigint,
    paused_at        timestamptz,
    paused_by        text,
    paused_others_wait boolean   not null default false
);
comment on table duplex.peer_registry is 'Nodes whose streams are applied here, and how that is going.';
comment on column duplex.peer_registry.settled is 'The peer''s watermark W: nothing that is stamped at or before will follow.';
comment on column duplex.peer_registry.held is 'The peer''s watermark S: the least W that it holds, its own included.';
comment on column duplex.peer_registry.heard_at is 'When what the peer says of itself was last written down here.';
comment on column duplex.peer_registry.stamped_ahead is 'The stream stopped at a transaction with this stamp, since the peer''s clock runs too far ahead.';
comment on column duplex.peer_registry.node_id is 'The identity in the peer''s newest hello; another one later is another database.';
comment on column duplex.peer_registry.hello_offset is 'Where the peer''s newest hello is in its topic: what stands there proves that the topic is the same.';
comment on column duplex.peer_registry.kafka_cluster is 'The Kafka cluster that holds the stream.';
comment on column duplex.peer_registry.start_offset is 'An operator said where the stream goes on; taken up when it is opened next.';
comment on column duplex.peer_registry.paused_at is 'Since when an operator holds the stream; null if nobody does.';
comment on column duplex.peer_registry.paused_others_wait is 'Transactions of other peers that were made after held ones wait for these.';
comment on column duplex.peer_registry.skip_next is 'An operator said to leave out the transaction at which the stream stopped.';
comment on column duplex.peer_registry.generation is 'The newest take-over of the stream; records of an earlier one that come later are void.';

create table duplex.apply_errors (
    id           bigint      generated always as identity primary key,
    happened_at  timestamptz not null default now(),
    peer         text        not null,
    topic_offset bigint      not null,
    xid          bigint,
    ordinal      integer,
    operation    text,
    table_name   text,
    key          jsonb,
    new_row      jsonb,
    sqlstate     text        not null,
    message      text        not null,
    detail       text,
    hint         text,
    resolution   text        check (resolution in ('retried', 'passed', 'change skipped', 'transaction skipped', 'resynced',
                                                   'parked', 'applied', 'dropped', 'truncated')),
    resolved_at  timestamptz,
    resolved_by  text
);
comment on table duplex.apply_errors is 'Changes that could not be applied, newest last, and what became of each.';
comment on column duplex.apply_errors.topic_offset is 'Kafka offset of the transaction''s first record.';
comment on column duplex.apply_errors.xid is 'The transaction, by its id on its own node.';
comment on column duplex.apply_errors.ordinal is 'Number of the change in its transaction, from 1; null where the transaction as a whole failed.';
comment on column duplex.apply_errors.resolution is 'What became of it; null as long as the stream stands still at it.';
comment on column duplex.apply_errors.resolved_by is 'Who decided so.';
create index on duplex.apply_errors (peer, topic_offset) where resolution is null or resolution = 'change skipped';

create table duplex.parked (
    id           bigint      generated always as identity primary key,
    error_id     bigint      not null,
    peer         text        not null,
    topic_offset bigint      not null,
    xid          bigint      not null,
    ordinal      integer     not null,
    commit_ts    timestamptz not null,
    operation    text        not null,
    table_name   text        not null,
    key          jsonb       not null,
    change       bytea       not null,
    waits        boolean     not null,
    attempts     integer     not null default 0,
    parked_at    timestamptz not null default now(),
    due_at       timestamptz not null default now(),
    sqlstate     text,
    message      text,
    detail       text,
    hint         text
);
comment on table duplex.parked is 'Changes that wait until they can be applied: those that failed, and later ones of the same keys.';
comment on column duplex.parked.error_id is 'Its row of duplex.apply_errors.';
comment on column duplex.parked.commit_ts is 'When its transaction committed on its own node: with peer the version that the row will have.';
comment on column duplex.parked.change is 'The change as it came: the descriptor of its table, the nodes that it refers to, and itself.';
comment on column duplex.parked.waits is 'It did not fail itself: it waits behind an earlier one of the same key.';
comment on column duplex.parked.due_at is 'When it is tried again.';
create index on duplex.parked using hash (key);
create index on duplex.parked (peer, due_at);

create table duplex.drain_state (
    singleton    boolean     primary key default true check (singleton),
    generation   bigint      not null default 0,
    previous     pg_snapshot not null,
    current      pg_snapshot not null,
    lsn          bigint      not null default 0,
    xid          bigint      not null default 0,
    topic_offset bigint,
    settled      timestamptz
) with (fillfactor = 20);
comment on table duplex.drain_state is 'How far the queue has been published: all that previous saw, and of current all up to (lsn, xid).';
comment on column duplex.drain_state.settled is 'This node''s own watermark W: all of its transactions that are not later are here and published.';

-- The queue: three tables that take turns, so that one whose rows are all published can be truncated while writers
-- use another. Rows are only ever appended: no index, no TOAST (payloads are compressed before they come here and cut
-- to fit a page), no vacuum; and one by hand cuts no pages off, since the drain remembers how far it has looked.
-- PostgreSQL gives a table its TOAST table when it is created, so the payload's storage has to be known before.
create table duplex.queue_row (
    lsn          bigint  not null,
    xid          xid8    not null,
    chunk        integer not null,
    piece        integer not null,
    expanded_len integer not null,
    payload      bytea   not null
);
alter table duplex.queue_row alter column payload set storage plain;
create table duplex.queue_0 (like duplex.queue_row including storage)
    with (autovacuum_enabled = false, vacuum_truncate = false);
create table duplex.queue_1 (like duplex.queue_row including storage)
    with (autovacuum_enabled = false, vacuum_truncate = false);
create table duplex.queue_2 (like duplex.queue_row including storage)
    with (autovacuum_enabled = false, vacuum_truncate = false);
drop table duplex.queue_row;
comment on table duplex.queue_0 is 'Captured transactions that wait for the relay; one of three tables that take turns.';
comment on table duplex.queue_1 is 'Captured transactions that wait for the relay; one of three tables that take turns.';
comment on table duplex.queue_2 is 'Captured transactions that wait for the relay; one of three tables that take turns.';
comment on column duplex.queue_0.lsn is 'WAL insert position just before the commit; with xid it orders transactions.';
comment on column duplex.queue_0.expanded_len is
    'Length of the chunk once expanded, 0 where it is not compressed; below 0, how many descriptors are left out.';

create table duplex.descriptors (
    digest     uuid  primary key,
    descriptor bytea not null
);
comment on table duplex.descriptors is
    'What tables look like and looked like, which the queue refers to. None is ever deleted: a row that waits may refer to it.';
comment on column duplex.descriptors.digest is 'The first half of the descriptor''s SHA-256.';
comment on column duplex.descriptors.descriptor is 'As it stands in a stream before the table''s first row.';

create table duplex.queue_turn (
    singleton boolean  primary key default true check (singleton),
    writing   smallint not null default 0 check (writing between 0 and 2)
);
comment on table duplex.queue_turn is 'Which of the three queue tables writers append to.';
insert into duplex.queue_turn default values;
