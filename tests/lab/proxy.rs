//! A door between a relay and what it talks to: TCP that can be cut, stalled and slowed down, and a Kafka that forgets its
//! brokers.

mod forgetful;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What happens to bytes on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// They pass.
    Free,
    /// They wait, and so does every new connection: as if a cable were pulled and nobody had noticed.
    Stalled,
    /// Each piece of them waits this long.
    Delayed(Duration),
    /// They pass, but what Kafka says of its cluster names no broker, on connections made from now on: as a broker that has
    /// just started may answer, before it is let into the cluster.
    Brokerless,
}

#[derive(Debug)]
struct State {
    target: AtomicU16,
    held: AtomicU64,
    forgot: AtomicU64,
    flow: watch::Sender<Flow>,
    /// Counts cuts: a connection ends when this changes.
    cuts: watch::Sender<u64>,
}

/// A listening port on the loopback interface whose connections go on to another one.
///
/// It runs on a thread of its own, so that a test which waits in a blocking call does not hold it up.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    state: Arc<State>,
    /// Its thread ends when this is dropped.
    _open: watch::Sender<()>,
}

impl Proxy {
    /// Opens a door; where it leads to is said with [`Proxy::lead_to`].
    ///
    /// # Errors
    /// If no port is free.
    pub fn open() -> Result<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).context("opening a proxy")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(State {
            target: AtomicU16::new(0),
            held: AtomicU64::new(0),
            forgot: AtomicU64::new(0),
            flow: watch::Sender::new(Flow::Free),
            cuts: watch::Sender::new(0),
        });
        let (open, closing) = watch::channel(());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("proxy".into()).spawn({
            let state = Arc::clone(&state);
            move || runtime.block_on(serve(listener, state, closing))
        })?;
        Ok(Self { port, state, _open: open })
    }

    /// From now on new connections go to this port.
    pub fn lead_to(&self, port: u16) {
        self.state.target.store(port, Ordering::Relaxed);
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends all connections that are open, on both sides. New ones may come at once.
    pub fn cut(&self) {
        self.state.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Says what happens to bytes from now on.
    pub fn set(&self, flow: Flow) {
        self.state.flow.send_replace(flow);
    }

    /// From now on nothing passes, nor does an answer that is on its way: what has been asked for is asked again once
    /// bytes may pass.
    pub fn shut(&self) {
        self.set(Flow::Stalled);
        self.cut();
    }

    /// Bytes that it has received and, being stalled, not passed on.
    pub fn held(&self) -> u64 {
        self.state.held.load(Ordering::Relaxed)
    }

    /// Answers that have gone out without the brokers that they named.
    pub fn forgot(&self) -> u64 {
        self.state.forgot.load(Ordering::Relaxed)
    }
}

async fn serve(listener: std::net::TcpListener, state: Arc<State>, mut closing: watch::Receiver<()>) {
    let listener = TcpListener::from_std(listener).expect("the runtime takes a socket that does not block");
    loop {
        tokio::select! {
            // Only the sender's end can be reported: nothing is ever sent.
            _ = closing.changed() => return,
            Ok((client, _)) = listener.accept() => {
                tokio::spawn(connect(client, Arc::clone(&state)));
            }
        }
    }
}

async fn connect(client: TcpStream, state: Arc<State>) {
    let mut cuts = state.cuts.subscribe();
    let through = async {
        passes(&state).await;
        let target = SocketAddr::from(([127, 0, 0, 1], state.target.load(Ordering::Relaxed)));
        // A target that is down looks to the client like one that hangs up.
        let Ok(server) = TcpStream::connect(target).await else { return };
        let _ = client.set_nodelay(true).and_then(|()| server.set_nodelay(true));
        let is_brokerless = || *state.flow.borrow() == Flow::Brokerless;
        if is_brokerless() {
            forgetful::pass(client, server, is_brokerless, &state.forgot).await;
            return;
        }
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::select! {
            () = pump(from_client, to_server, &state) => {}
            () = pump(from_server, to_client, &state) => {}
        }
    };
    tokio::select! {
        _ = cuts.changed() => {}
        () = through => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, state: &State) {
    let mut piece = vec![0; 64 * 1024];
    loop {
        let Ok(bytes @ 1..) = from.read(&mut piece).await else { return };
        let held = Held::new(state, bytes as u64);
        passes(state).await;
        drop(held);
        if to.write_all(&piece[..bytes]).await.is_err() {
            return;
        }
    }
}

/// Waits for as long as the flow says.
async fn passes(state: &State) {
    let mut flow = state.flow.subscribe();
    let now = *flow.borrow_and_update();
    match now {
        Flow::Free | Flow::Brokerless => {}
        Flow::Delayed(time) => tokio::time::sleep(time).await,
        Flow::Stalled => drop(flow.wait_for(|flow| *flow != Flow::Stalled).await),
    }
}

/// Bytes in the proxy's hand; a connection that is cut lets go of them.
struct Held<'a>(&'a State, u64);

impl<'a> Held<'a> {
    fn new(state: &'a State, bytes: u64) -> Self {
        state.held.fetch_add(bytes, Ordering::Relaxed);
        Self(state, bytes)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.held.fetch_sub(self.1, Ordering::Relaxed);
    }
}
