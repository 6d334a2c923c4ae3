#!/usr/bin/env bash
# Makes a new database a node, once, when the container starts on an empty volume. Scripts that come after this one in
# /docker-entrypoint-initdb.d can create tables and enable them.
set -euo pipefail

if [ -z "${DUPLEX_NODE:-}" ]; then
  echo 'DUPLEX_NODE is not set: this database is not made a node (create extension pg_duplex; select duplex.create_node(...))'
  exit 0
fi

# A password may also lie in a file, as the official image has it for its own.
if [ -n "${DUPLEX_RELAY_PASSWORD_FILE:-}" ]; then
  if [ -n "${DUPLEX_RELAY_PASSWORD:-}" ]; then
    echo 'error: both DUPLEX_RELAY_PASSWORD and DUPLEX_RELAY_PASSWORD_FILE are set' >&2
    exit 1
  fi
  DUPLEX_RELAY_PASSWORD=$(<"$DUPLEX_RELAY_PASSWORD_FILE")
fi
if [ -z "${DUPLEX_RELAY_PASSWORD:-}" ]; then
  echo 'error: the relay needs a password: set DUPLEX_RELAY_PASSWORD or DUPLEX_RELAY_PASSWORD_FILE' >&2
  exit 1
fi
export DUPLEX_NODE DUPLEX_PEERS="${DUPLEX_PEERS:-}" DUPLEX_RELAY_USER="${DUPLEX_RELAY_USER:-relay}" DUPLEX_RELAY_PASSWORD

# \getenv: neither the process list nor a shell's quoting gets to see the values.
psql --no-psqlrc --quiet -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
\getenv node DUPLEX_NODE
\getenv peers DUPLEX_PEERS
\getenv relay_user DUPLEX_RELAY_USER
\getenv relay_password DUPLEX_RELAY_PASSWORD
\o /dev/null
begin;
create extension pg_duplex;
select duplex.create_node(:'node');
select duplex.add_peer(peer)
  from regexp_split_to_table(:'peers', '[,[:space:]]+') as peer
 where peer <> '';
create role :"relay_user" login password :'relay_password' in role duplex_relay;
commit;
SQL
echo "this database is node \"$DUPLEX_NODE\", its peers: ${DUPLEX_PEERS:-none}"
