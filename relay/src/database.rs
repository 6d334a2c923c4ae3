//! A connection to the node's database.

use std::ops::Deref;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::config::Settings;
use crate::errors::Error;
use crate::tls;

/// What the server does about a client that vanished without a word: the host of an active relay that lost its power must
/// not hold the node's place for the two hours that an operating system takes by itself. After four seconds of silence the
/// server asks, and ten seconds without an answer end the session, and with it all that it held.
const SERVER_NOTICES: &str = "set tcp_keepalives_idle = 4; set tcp_keepalives_interval = 2; set tcp_keepalives_count = 3; \
                              set tcp_user_timeout = 10000";

/// A session in the database. Dropping it closes the connection, and with it all that the session held there.
#[derive(Debug)]
pub struct Session {
    client: Client,
    driver: JoinHandle<()>,
}

impl Session {
    /// Connects. `role` says in `pg_stat_activity` what the session is for.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Tls`], [`Error::Database`].
    pub async fn connect(settings: &Settings, role: &str) -> Result<Self, Error> {
        let mut config = settings.database.clone();
        config.application_name(format!("duplex-relay {role}"));
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(Duration::from_secs(5));
        }
        // A server that vanished without a word is noticed within half a minute, not after two hours.
        config.keepalives_idle(Duration::from_secs(10));
        config.keepalives_interval(Duration::from_secs(5));
        config.keepalives_retries(4);
        let (client, connection) =
            config.connect(tls::connector(settings.database_ca.as_deref())?).await.map_err(Error::Connect)?;
        let driver = tokio::spawn(async move {
            // Whoever waits on the client gets the error too, and handles it.
            if let Err(err) = connection.await {
                tracing::debug!(error = %err, "database connection ended");
            }
        });
        let session = Self { client, driver };
        let set = session.batch_execute(SERVER_NOTICES).await;
        set.map_err(Error::database("saying when a relay counts as gone"))?;
        Ok(session)
    }
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
