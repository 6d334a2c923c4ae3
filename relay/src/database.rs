//! A connection to the node's database.

use std::ops::Deref;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::config::Settings;
use crate::errors::Error;
use crate::tls;

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
    /// [`Error::Connect`], [`Error::Tls`].
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
        Ok(Self { client, driver })
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
