#!/usr/bin/env bash
# Builds the images and runs the picture of docker/compose.yaml once, for real, then takes it down: a row goes from chat1
# to chat2, its change comes back, its end goes over again, and a relay that was away catches up.
#
# Uses the Docker engine that answers; else starts one of its own (Debian's docker.io) and removes it afterwards. Where
# no registry can be reached, the base images are made from Debian packages (docker/offline) and the binaries come from
# `make build`. DUPLEX_OFFLINE=yes|no decides that instead of a trial pull.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
. docker/offline/engine.sh
. docker/offline/images.sh

project=duplex_try_$$
files=(-f docker/compose.yaml)
# Any free port: the picture may already run on its usual ones.
export CHAT1_LISTEN='127.0.0.1:' CHAT2_LISTEN='127.0.0.1:'
# Nobody else's tag is overwritten, and what was built can be told from what was released.
export DUPLEX_POSTGRES_IMAGE=pg_duplex/postgres:try DUPLEX_RELAY_IMAGE=pg_duplex/relay:try
up=no

compose() { "${compose_command[@]}" -p "$project" "${files[@]}" "$@"; }

finish() {
  local status=$?
  trap - EXIT
  if [ "$up" = yes ]; then
    if [ "$status" -ne 0 ]; then compose ps >&2 || true; compose logs --no-color --tail=60 >&2 || true; fi
    say 'taking it down'
    compose down --volumes --remove-orphans >&2 || status=1
  fi
  offline_clean
  engine_stop
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

# What a query says in one of the databases.
query() { compose exec -T "$1" psql -U postgres -d "$1" --no-psqlrc -qAt -v ON_ERROR_STOP=1 -c "$2" </dev/null; }

# Waits until a query's answer is the expected one.
expect() {
  local node=$1 sql=$2 wanted=$3 answer='' deadline=$((SECONDS + 60))
  until [ "$answer" = "$wanted" ]; do
    if [ "$SECONDS" -ge "$deadline" ]; then
      query chat1 'table duplex.peers' >&2 || true
      query chat2 'table duplex.peers' >&2 || true
      die "in $node, <$sql> says <$answer> and not <$wanted>"
    fi
    answer=$(query "$node" "$sql" 2>/dev/null) || answer='no answer'
    [ "$answer" = "$wanted" ] || sleep 0.2
  done
  echo "    $node: $wanted"
}

engine_find
compose_find
if offline; then
  say 'no registry can be reached: base images from Debian packages, binaries from make build'
  offline_images
  files+=(-f docker/compose.offline.yaml)
fi

say 'building the images'
# The two databases share an image, and so do the relays.
compose build chat1 relay1 >&2

say 'starting two databases, Kafka and two relays'
up=yes
compose up -d --no-build >&2

person="select user_name || ' ' || user_status from user_table where user_id = 'u1'"
say 'a row written in chat1 appears in chat2'
query chat1 "begin;
  insert into user_table values ('u1', '김철수', 'online');
  insert into message (user_id, body) values ('u1', '안녕하세요');
  commit"
expect chat2 "$person" '김철수 online'
expect chat2 "select body from message where user_id = 'u1'" '안녕하세요'

say 'changed in chat2, it comes back to chat1'
query chat2 "update user_table set user_status = 'away' where user_id = 'u1'"
expect chat1 "$person" '김철수 away'

say 'a relay that was stopped catches up'
compose stop relay2 >&2
code=$(docker inspect -f '{{.State.ExitCode}}' "$(compose ps -q relay2 | head -n 1)")
[ "$code" = 0 ] || die "the relay answered SIGTERM with exit code $code"
query chat1 "update user_table set user_status = 'busy' where user_id = 'u1'"
compose start relay2 >&2
expect chat2 "$person" '김철수 busy'

say 'deleted in chat1, it is gone from chat2'
query chat1 "begin; delete from message; delete from user_table; commit"
expect chat2 'select (select count(*) from user_table) + (select count(*) from message)' 0

say 'nothing echoes: each queue is empty, and each node has applied just what the other one wrote'
expect chat1 'select transactions from duplex.queue_status' 0
expect chat2 'select transactions from duplex.queue_status' 0
expect chat1 "select state from duplex.peers" running
expect chat2 "select state from duplex.peers" running

say 'memory and processor of each container'
mapfile -t containers < <(compose ps -q)
docker stats --no-stream --format '{{.Name}}\t{{.MemUsage}}\t{{.CPUPerc}}' "${containers[@]}"
say 'all of it works'
