//! A connection to a database, with short ways to ask.

use anyhow::{Context, Result, bail};
use tokio_postgres::error::DbError;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// A row as text: what `psql` would show, `None` for NULL.
pub type TextRow = Vec<Option<String>>;

/// A connection. Everything goes by the simple protocol, so that a string may hold many statements.
#[derive(Debug)]
pub struct Session {
    client: Client,
}

impl Session {
    /// Connects.
    ///
    /// # Errors
    /// If the server refuses or is not there.
    pub async fn connect(url: &str) -> Result<Self> {
        let (client, connection) =
            tokio_postgres::connect(url, NoTls).await.with_context(|| format!("connecting to {url}"))?;
        // The connection's end shows in the client's next call.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Self { client })
    }

    /// The driver's own client: prepared statements, COPY.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The driver's own client, for its transactions.
    pub fn client_mut(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Runs statements.
    ///
    /// # Errors
    /// The server's.
    pub async fn exec(&self, sql: &str) -> Result<()> {
        self.client.batch_execute(sql).await.map_err(|err| explain(err, sql))
    }

    /// Runs statements one by one: in one string they would be one transaction.
    ///
    /// # Errors
    /// The server's.
    pub async fn each(&self, statements: &[&str]) -> Result<()> {
        for sql in statements {
            self.exec(sql).await?;
        }
        Ok(())
    }

    /// The rows of a query, as text.
    ///
    /// # Errors
    /// The server's.
    pub async fn rows(&self, sql: &str) -> Result<Vec<TextRow>> {
        let messages = self.client.simple_query(sql).await.map_err(|err| explain(err, sql))?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()),
                _ => None,
            })
            .collect())
    }

    /// The one value of a query, as text.
    ///
    /// # Errors
    /// The server's; no row; NULL.
    pub async fn one(&self, sql: &str) -> Result<String> {
        let row = self.rows(sql).await?.into_iter().next().with_context(|| format!("no row from: {sql}"))?;
        row.into_iter().next().flatten().with_context(|| format!("NULL from: {sql}"))
    }

    /// The one value of a query, as a number.
    ///
    /// # Errors
    /// The server's; no number.
    pub async fn number(&self, sql: &str) -> Result<i64> {
        let text = self.one(sql).await?;
        text.parse().with_context(|| format!("{text} from: {sql}"))
    }

    /// The error that these statements must give.
    ///
    /// # Errors
    /// If they give none, or the connection broke: a crash is not an error message.
    pub async fn error(&self, sql: &str) -> Result<DbError> {
        match self.client.simple_query(sql).await {
            Ok(_) => bail!("no error from: {sql}"),
            Err(err) => match err.as_db_error() {
                Some(error) => Ok(error.clone()),
                None => bail!("the connection broke ({err}) over: {sql}"),
            },
        }
    }

    /// Checks that these statements give an error of this SQLSTATE.
    ///
    /// # Errors
    /// If they give none, or another.
    pub async fn refuses(&self, sqlstate: &str, sql: &str) -> Result<DbError> {
        let error = self.error(sql).await?;
        if error.code().code() != sqlstate {
            bail!("expected SQLSTATE {sqlstate}, got {}: {} — from: {sql}", error.code().code(), error.message());
        }
        Ok(error)
    }
}

fn explain(err: tokio_postgres::Error, sql: &str) -> anyhow::Error {
    let shown: String = sql.chars().take(300).collect();
    let message = match err.as_db_error() {
        Some(error) => format!(
            "{} {}{}{}\n  in: {shown}",
            error.code().code(),
            error.message(),
            error.detail().map(|d| format!("\n  detail: {d}")).unwrap_or_default(),
            error.where_().map(|w| format!("\n  context: {w}")).unwrap_or_default(),
        ),
        None => format!("{err} in: {shown}"),
    };
    anyhow::Error::new(err).context(message)
}

/// A name as an SQL literal.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
