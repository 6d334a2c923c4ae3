-- The trigger functions of captured tables. duplex.enable creates the triggers.
-- A trigger's function needs no execute right when it fires; nobody else is to create triggers with these.

create function duplex.capture_row() returns trigger
    language c
    as 'MODULE_PATHNAME', 'duplex_capture_row';
comment on function duplex.capture_row() is
    'Trigger AFTER INSERT OR UPDATE OR DELETE FOR EACH ROW: captures the change for the peers.';
revoke execute on function duplex.capture_row() from public;

create function duplex.capture_truncate() returns trigger
    language c
    as 'MODULE_PATHNAME', 'duplex_capture_truncate';
comment on function duplex.capture_truncate() is
    'Trigger AFTER TRUNCATE FOR EACH STATEMENT: captures the truncation for the peers.';
revoke execute on function duplex.capture_truncate() from public;
