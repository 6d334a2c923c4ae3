//! A relay that dies between any two steps on the way of a transaction: it is published once and applied once.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use duplex_lab::process::died_of;
use duplex_lab::session::literal;
use duplex_lab::wait::when;
use duplex_lab::{Lab, Node, PATIENCE, Place, Session, until};
use nix::sys::signal::Signal;

/// How long a transaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    /// One record, which the peer applies in a call that commits by itself.
    One,
    /// Several chunks, which the peer applies between BEGIN and COMMIT.
    Many,
}

/// Rows that the long transaction changes: three chunks.
const ROWS: i64 = 12_000;

/// What there is of a transaction at the time of a death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standing {
    /// Whole in the topic.
    published: bool,
    /// Not confirmed to the origin.
    queued: bool,
    /// Committed on the peer.
    applied: bool,
}

/// What there has to be of a transaction when a relay dies at a place. Of a take-over it is what the relay before it has
/// left, which has published and died.
fn standing_at(place: Place) -> Standing {
    let at = |published, queued, applied| Standing { published, queued, applied };
    match place {
        Place::OutboundAfterDrain | Place::OutboundWithinTransaction => at(false, true, false),
        Place::OutboundAfterPublish
        | Place::OutboundAfterOpen
        | Place::OutboundAfterHello
        | Place::OutboundAfterTail => at(true, true, false),
        Place::OutboundAfterConfirm | Place::InboundBeforeApply | Place::InboundBeforeCommit => at(true, false, false),
        Place::InboundAfterApply => at(true, false, true),
    }
}

/// Whether a transaction of that size comes by a place.
fn comes_by(place: Place, size: Size) -> bool {
    size == Size::Many || !matches!(place, Place::OutboundWithinTransaction | Place::InboundBeforeCommit)
}

/// Whether a place is within a take-over.
fn takes_over(place: Place) -> bool {
    matches!(place, Place::OutboundAfterOpen | Place::OutboundAfterHello | Place::OutboundAfterTail)
}

/// On which side of Kafka a place is.
fn is_outbound(place: Place) -> bool {
    place.name().starts_with("outbound")
}

/// Two nodes, the second of which counts twice over what is applied to it: each row's column adds up what every
/// transaction has added, and a trigger writes down each time that a row is written.
struct Counted {
    lab: Lab,
    /// Transactions so far, of each size.
    ones: i64,
    many: i64,
}

const COUNTING: &str = "
create table written (id int not null);
create function written() returns trigger language plpgsql as
  $$ begin insert into public.written values (new.id); return null; end $$;
create trigger written after insert or update on t for each row execute function written();
alter table t enable always trigger written;";

impl Counted {
    async fn begin(lab: Lab) -> Result<Self> {
        lab.exec_everywhere("create table t (id int primary key, n bigint not null, v text)").await?;
        lab.exec_everywhere("select duplex.enable('t', delta_columns => '{n}')").await?;
        let [a, b] = lab.pair();
        a.relay().start()?;
        b.relay().start()?;
        a.exec(&format!("insert into t select i, 0, '' from generate_series(0, {ROWS}) i")).await?;
        lab.settled().await?;
        b.exec(COUNTING).await?;
        Ok(Self { lab, ones: 0, many: 0 })
    }

    /// A transaction of that size on the first node.
    async fn write(&mut self, size: Size) -> Result<()> {
        let rows = match size {
            Size::One => "id = 0",
            Size::Many => "id > 0",
        };
        // Incompressible.
        let set = "n = n + 1, v = md5(random()::text) || md5(random()::text)";
        self.lab.node(0).exec(&format!("update t set {set} where {rows}")).await?;
        *(if size == Size::One { &mut self.ones } else { &mut self.many }) += 1;
        Ok(())
    }

    /// Transactions that must be in the first node's topic, and what is in it.
    async fn published(&self) -> Result<(i64, i64)> {
        let found = self.lab.transactions(self.lab.node(0)).await?;
        Ok((1 + self.ones + self.many, i64::try_from(found)?))
    }

    /// How many rows of the second node were not written as often as they had to be.
    async fn wrong(&self) -> Result<i64> {
        self.wrong_on(self.lab.node(1)).await
    }

    /// How many rows of a node that counts were not written as often as they had to be.
    async fn wrong_on(&self, node: &Node) -> Result<i64> {
        let (ones, many) = (self.ones, self.many);
        let sql = format!(
            "select count(*) from t left join (select id, count(*) times from written group by 1) w using (id) \
              where (n, coalesce(times, 0)) <> \
                    (case id when 0 then {ones} else {many} end, case id when 0 then {ones} else {many} end)"
        );
        node.number(&sql).await
    }

    /// What there is of the newest transaction.
    async fn standing(&self) -> Result<Standing> {
        let (due, found) = self.published().await?;
        ensure!(found == due || found == due - 1, "{found} transactions are published, {due} were committed");
        Ok(Standing {
            published: found == due,
            queued: self.lab.node(0).queued().await? > 0,
            applied: self.wrong().await? == 0,
        })
    }

    /// Waits until all is where it belongs, and checks that it is there once.
    async fn once(&self) -> Result<()> {
        self.lab.converges(&["t"]).await?;
        let (due, found) = self.published().await?;
        ensure!(found == due, "{found} transactions are published, {due} were committed");
        let wrong = self.wrong().await?;
        ensure!(wrong == 0, "{wrong} rows were not applied once");
        let back = self.lab.transactions(self.lab.node(1)).await?;
        ensure!(back == 0, "{back} transactions came back");
        Ok(())
    }
}

async fn dies_at(node: &Node, place: Place, passes: u32) -> Result<()> {
    node.relay().start_failing(place, passes)?;
    let process = node.relay().process()?;
    let what = format!("the relay to die at {}", place.name());
    let status = until(&what, PATIENCE, async || Ok(process.ended().ok_or("it lives"))).await?;
    ensure!(died_of(status, Signal::SIGABRT), "it ended with {status}:\n{}", node.relay().log_tail(20));
    Ok(())
}

/// No heartbeat comes in between: a place is passed by the one transaction alone.
async fn counted() -> Result<Counted> {
    Counted::begin(Lab::builder().heartbeats("1h").relays_stopped().start().await?).await
}

/// Where a transaction of that size passes on one side of Kafka, in the order in which relays can die there one after
/// the other: each finds what the one before has left. A place of a take-over comes when there is something to find.
fn places(outbound: bool, size: Size) -> Vec<Place> {
    let mut places: Vec<Place> = Place::ALL.to_vec();
    places.retain(|&place| is_outbound(place) == outbound && comes_by(place, size));
    places.sort_by_key(|&place| {
        let Standing { published, queued, applied } = standing_at(place);
        (published, !queued, applied, takes_over(place))
    });
    places
}

impl Counted {
    /// Relays of a node die one after the other, each at a place and each after so many passes, over one transaction.
    async fn lets_die(&self, node: &Node, size: Size, deaths: &[(Place, u32)]) -> Result<()> {
        for &(place, passes) in deaths {
            let case = format!("{size:?} at {} after {passes} passes", place.name());
            dies_at(node, place, passes).await.with_context(|| case.clone())?;
            let standing = self.standing().await.with_context(|| case.clone())?;
            ensure!(standing == standing_at(place), "{case}: {standing:?}");
        }
        Ok(())
    }
}

#[tokio::test]
async fn senders_that_die_anywhere_publish_once() -> Result<()> {
    let mut counted = counted().await?;
    for size in [Size::One, Size::Many] {
        counted.lab.stop_relays()?;
        counted.write(size).await?;
        let deaths: Vec<_> = places(true, size).into_iter().map(|place| (place, 0)).collect();
        let [a, b] = counted.lab.pair();
        counted.lets_die(a, size, &deaths).await?;
        a.relay().start()?;
        b.relay().start()?;
        counted.once().await?;
    }
    counted.lab.stop_relays()
}

#[tokio::test]
async fn receivers_that_die_anywhere_apply_once() -> Result<()> {
    let mut counted = counted().await?;
    for size in [Size::One, Size::Many] {
        counted.lab.node(1).relay().stop()?;
        counted.write(size).await?;
        let mut deaths: Vec<_> = places(false, size).into_iter().map(|place| (place, 0)).collect();
        if size == Size::Many {
            // Between two chunks.
            deaths.insert(1, (Place::InboundBeforeApply, 1));
        }
        let [a, b] = counted.lab.pair();
        until("the transaction to be published", PATIENCE, async || {
            let queued = a.queued().await?;
            Ok(when(queued == 0, format!("{queued} are queued")))
        })
        .await?;
        counted.lets_die(b, size, &deaths).await?;
        b.relay().start()?;
        counted.once().await?;
    }
    counted.lab.stop_relays()
}

/// Which places relays die at above: a list that came out empty would test nothing.
#[test]
fn every_place_has_its_turn() {
    use Place::{
        InboundAfterApply, InboundBeforeApply, InboundBeforeCommit, OutboundAfterConfirm, OutboundAfterDrain,
        OutboundAfterHello, OutboundAfterOpen, OutboundAfterPublish, OutboundAfterTail, OutboundWithinTransaction,
    };
    let outbound = [
        OutboundAfterDrain,
        OutboundWithinTransaction,
        OutboundAfterPublish,
        OutboundAfterOpen,
        OutboundAfterHello,
        OutboundAfterTail,
        OutboundAfterConfirm,
    ];
    assert_eq!(places(true, Size::Many), outbound);
    assert_eq!(places(false, Size::Many), [InboundBeforeApply, InboundBeforeCommit, InboundAfterApply]);
    assert_eq!(places(true, Size::One).len() + places(false, Size::One).len(), Place::ALL.len() - 2);
}

/// Key of the lock on which a commit on the second node waits: everything is applied, nothing is committed.
const GATE: i32 = 77;

const GATED: &str = "
create function gate() returns trigger language plpgsql as
  $$ begin perform pg_advisory_xact_lock_shared(77); return null; end $$;
create constraint trigger gate after insert or update on t deferrable initially deferred
  for each row execute function gate();
alter table t enable always trigger gate;";

/// Shuts the gate, lets a transaction of one record come up to it, and returns who holds the gate and who waits there.
async fn at_the_gate(counted: &mut Counted) -> Result<(Session, i32)> {
    let gate = counted.lab.node(1).connect().await?;
    gate.exec(&format!("select pg_advisory_lock({GATE})")).await?;
    counted.write(Size::One).await?;
    let [a, b] = counted.lab.pair();
    let sql = format!(
        "select pid from pg_stat_activity where application_name = {} and wait_event = 'advisory'",
        literal(&format!("duplex-relay inbound {}", a.name()))
    );
    let pid = until("a commit to wait at the gate", PATIENCE, async || {
        let row = b.rows(&sql).await?.into_iter().next().and_then(|row| row.into_iter().next().flatten());
        Ok(row.ok_or("nobody waits"))
    });
    let pid = pid.await?.parse()?;
    // Kafka and the origin are done with it: what is left is that very commit.
    ensure!(!counted.standing().await?.applied, "it is committed already");
    Ok((gate, pid))
}

/// Waits until a backend is gone.
async fn gone(node: &Node, pid: i32) -> Result<()> {
    node.shows(&format!("select count(*) from pg_stat_activity where pid = {pid}"), "0").await
}

/// The commit of a transaction of one record happens within the server's call, where no relay can die; but the relay
/// before it, the session and the server can.
#[tokio::test]
async fn what_is_applied_and_not_committed_is_applied_once() -> Result<()> {
    let lab = Lab::builder().crashes().heartbeats("1h").relays_stopped().start().await?;
    let mut counted = Counted::begin(lab).await?;
    counted.lab.node(1).exec(GATED).await?;

    // The relay dies; its session does not notice, and commits when the next relay is there already.
    let (gate, pid) = at_the_gate(&mut counted).await?;
    let b = counted.lab.node(1);
    let before = b.relay().generation()?;
    b.relay().kill()?;
    b.relay().start()?;
    until("the next relay to serve the node", PATIENCE, async || {
        let now = b.relay().generation()?;
        Ok(when(now > before, format!("generation {now}")))
    })
    .await?;
    assert_eq!(b.number(&format!("select count(*) from pg_stat_activity where pid = {pid}")).await?, 1, "it is gone");
    drop(gate);
    counted.once().await.context("the relay was killed")?;

    // The session is ended; another one applies it again, up to the same gate.
    let (gate, pid) = at_the_gate(&mut counted).await?;
    let b = counted.lab.node(1);
    assert_eq!(b.one(&format!("select pg_terminate_backend({pid})")).await?, "t");
    gone(b, pid).await?;
    assert!(counted.wrong().await? > 0, "it was committed though its session was ended");
    drop(gate);
    counted.once().await.context("the session was terminated")?;

    // The server dies, and the gate with it.
    let (gate, pid) = at_the_gate(&mut counted).await?;
    counted.lab.node(1).cluster().kill_backend(pid)?;
    drop(gate);
    until("the postmaster to notice", PATIENCE, async || {
        Ok(when(!Path::new(&format!("/proc/{pid}")).exists(), "the dead backend is there"))
    })
    .await?;
    counted.lab.node(1).cluster().recovered().await?;
    counted.once().await.context("the backend was killed")?;
    counted.lab.stop_relays()
}

/// A take-over brings back what a promoted server lacks of its own stream; the relay dies before that, and after it.
#[tokio::test]
async fn what_a_promoted_server_lacks_comes_back_once_though_relays_die_over_it() -> Result<()> {
    let lab = Lab::builder().crashes().heartbeats("1h").relays_stopped().start().await?;
    let mut counted = Counted::begin(lab).await?;
    let a = counted.lab.node(0);
    a.exec(COUNTING).await?;
    let standby = a.cluster().standby("standby").await?;
    standby.caught_up_with(a.cluster()).await?;
    standby.cut_off().await?;
    counted.write(Size::One).await?;
    counted.write(Size::Many).await?;
    counted.once().await?;

    let a = counted.lab.node(0);
    a.relay().kill()?;
    a.cluster().crash()?;
    standby.promote().await?;
    counted.lab.fail_over(0, standby);
    let a = counted.lab.node(0);
    dies_at(a, Place::OutboundAfterHello, 0).await?;
    assert_eq!(counted.wrong_on(a).await?, ROWS + 1, "nothing can be back yet");
    dies_at(a, Place::OutboundAfterTail, 0).await?;
    assert_eq!(counted.wrong_on(a).await?, 0, "all must be back");
    a.relay().start()?;
    // Counters take no writes before a relay has found that nothing is lacking any more.
    a.shows("select coalesce(lacks, '') from duplex.status", "").await?;
    counted.write(Size::One).await?;
    counted.once().await?;
    assert_eq!(counted.wrong_on(counted.lab.node(0)).await?, 0, "it came back twice");
    counted.lab.stop_relays()
}
