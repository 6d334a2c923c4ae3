//! What the two chat services write, and that both databases come to hold all of it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use duplex_lab::{Lab, Node, PATIENCE, Session};

use super::picture::{Pair, sessions};
use super::screen::{Look, Screen};

const TABLES: &str = "\
create table user_table (
    user_id     varchar primary key,
    user_name   varchar,
    user_status varchar
);
create table message (
    message_id varchar primary key,
    user_id    varchar not null references user_table,
    body       varchar
);";

/// How often two tables that differ are looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// How often tables at rest are looked at.
const WATCH: Duration = Duration::from_millis(200);

/// How many transactions the applications have committed on each node.
pub(crate) type Committed = [usize; 2];

/// A step: what is written on each side at the same moment, a transaction a piece of text.
struct Step {
    heading: &'static str,
    text: &'static str,
    writes: [&'static str; 2],
}

const STEPS: [Step; 3] = [
    Step {
        heading: "Both services take sign-ups and messages at the same time",
        text: "Each side writes users and their first messages in one transaction. A message refers to its user by a \
               foreign key, so a transaction that came over in pieces would fail.",
        writes: [
            "begin;\n\
             insert into user_table values ('minsu', '김민수', '온라인'), ('seoyeon', '이서연', '자리 비움');\n\
             insert into message values ('c1-1', 'minsu', '안녕하세요!'), ('c1-2', 'seoyeon', '반가워요');\n\
             commit",
            "begin;\n\
             insert into user_table values ('lena', 'Lena Vogt', 'online'), ('tom', 'Tom Ward', 'busy');\n\
             insert into message values ('c2-1', 'lena', 'hello 민수'), ('c2-2', 'tom', 'good morning');\n\
             commit",
        ],
    },
    Step {
        heading: "Each side changes what the other one wrote",
        text: "chat1 updates a user who signed up at chat2 and answers; chat2 does the same the other way round.",
        writes: [
            "begin;\n\
             update user_table set user_status = 'away' where user_id = 'lena';\n\
             insert into message values ('c1-3', 'minsu', 'Lena, 점심?');\n\
             commit",
            "begin;\n\
             update user_table set user_name = '이서연 (서울)', user_status = '회의 중' where user_id = 'seoyeon';\n\
             update message set body = '반갑습니다' where message_id = 'c1-2';\n\
             commit",
        ],
    },
    Step {
        heading: "Rows are deleted on both sides",
        text: "chat1 deletes a user who signed up at chat2, messages first; chat2 deletes a message that was written at chat1.",
        writes: [
            "begin;\n\
             delete from message where user_id = 'tom';\n\
             delete from user_table where user_id = 'tom';\n\
             commit",
            "delete from message where message_id = 'c1-1'",
        ],
    },
];

/// Makes the tables and tells all steps. Returns what was committed where.
pub(crate) async fn tell(screen: &Screen, lab: &Lab) -> Result<Committed> {
    screen.heading("The chat service's tables, made and enabled in both databases");
    show_sql(screen, TABLES);
    show_sql(screen, "select duplex.enable('user_table'), duplex.enable('message');");
    lab.create_everywhere(TABLES, &["user_table", "message"]).await?;
    let looking = sessions(lab).await?;
    let writing = sessions(lab).await?;
    let mut committed = [0; 2];
    for (number, step) in STEPS.iter().enumerate() {
        screen.heading(&format!("{}. {}", number + 1, step.heading));
        screen.text(step.text);
        for (node, sql) in lab.pair().into_iter().zip(step.writes) {
            screen.line("");
            screen.line(&screen.look(Look::Bold, &format!("{}:", node.database())));
            show_sql(screen, &format!("{sql};"));
        }
        tokio::try_join!(write(&writing[0], step.writes[0]), write(&writing[1], step.writes[1]))?;
        committed = committed.map(|count| count + 1);
        until_equal(screen, lab, &looking, Instant::now()).await?;
    }
    Ok(committed)
}

async fn write(session: &Session, sql: &str) -> Result<()> {
    session.exec(sql).await.context("a write of the demo failed")
}

fn show_sql(screen: &Screen, sql: &str) {
    for line in sql.lines() {
        screen.line(&format!("  {}", screen.look(Look::Dim, line)));
    }
}

async fn read(sessions: &[Session; 2]) -> Result<[Pair; 2]> {
    Ok([
        Pair::read(sessions, "user_table", &["user_id", "user_name", "user_status"]).await?,
        Pair::read(sessions, "message", &["message_id", "user_id", "body"]).await?,
    ])
}

fn draw(screen: &Screen, lab: &Lab, tables: &[Pair; 2], caption: &str) {
    screen.line("");
    screen.line(caption);
    screen.line("");
    let databases = lab.pair().map(Node::database);
    for table in tables {
        table.draw(screen, databases);
    }
}

/// Draws both tables as they are found first, and once they are equal.
async fn until_equal(screen: &Screen, lab: &Lab, sessions: &[Session; 2], since: Instant) -> Result<()> {
    let mut drawn = false;
    loop {
        let tables = read(sessions).await?;
        let took = format!("{:.1} ms after both commits", since.elapsed().as_secs_f64() * 1000.0);
        let equal = tables.iter().all(Pair::is_equal);
        if equal {
            draw(screen, lab, &tables, &screen.look(Look::Good, &format!("{took}: equal")));
            return Ok(());
        }
        if since.elapsed() > PATIENCE {
            bail!("the databases are still different after {PATIENCE:?}\n{}", lab.logs());
        }
        if !std::mem::replace(&mut drawn, true) {
            draw(screen, lab, &tables, &screen.look(Look::Pending, &format!("{took}: on the way")));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Draws both tables whenever somebody has changed them by hand; a server that was stopped is waited for.
pub(crate) async fn watch(screen: &Screen, lab: &Lab) -> Result<()> {
    let mut known = None;
    loop {
        if let Ok(sessions) = sessions(lab).await {
            while let Ok(tables) = read(&sessions).await {
                if known.as_ref().is_some_and(|known| known != &tables) {
                    let equal = tables.iter().all(Pair::is_equal);
                    let (look, word) = if equal { (Look::Good, "equal") } else { (Look::Pending, "on the way") };
                    draw(screen, lab, &tables, &screen.look(look, &format!("changed by hand: {word}")));
                }
                known = Some(tables);
                tokio::time::sleep(WATCH).await;
            }
        }
        tokio::time::sleep(WATCH).await;
    }
}
