-- The chat service's tables, the same on both sides, and their part in replication.

create table user_table (
    user_id     varchar primary key,
    user_name   varchar,
    user_status varchar
);

create table message (
    message_id uuid        primary key default gen_random_uuid(),
    user_id    varchar     not null references user_table,
    body       text        not null,
    sent_at    timestamptz not null default now()
);

select duplex.enable('user_table');
select duplex.enable('message');
