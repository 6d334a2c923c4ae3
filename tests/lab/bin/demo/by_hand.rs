//! How to go on by hand.

use std::path::Path;

use duplex_lab::{Lab, Node};

use super::screen::{Look, Screen};

/// Prints commands that can be copied to another terminal as they are.
pub(crate) fn explain(screen: &Screen, lab: &Lab) {
    let [a, b] = lab.pair();
    let psql = program("psql", a.cluster().programs());
    let at = |node: &Node| format!("{psql} {}", node.url_as("postgres"));
    let relay = duplex_lab::relay::binary().map_or("duplex-relay".to_owned(), |path| path.display().to_string());
    let lab_program = std::env::current_exe().map_or("duplex-lab".to_owned(), |path| path.display().to_string());
    let ctl = |words: &str| format!("{lab_program} ctl --lab {} {words}", lab.folder().display());
    let commands = [
        (
            "Write in one database and read in the other:",
            vec![
                format!("{} -c \"insert into user_table values ('me', '나', 'here')\"", at(a)),
                format!("{} -c 'table user_table'", at(b)),
            ],
        ),
        ("Work in a session:", vec![at(a), at(b)]),
        (
            "How the streams are, and what waits to be published:",
            vec![format!(
                "{} -c 'select name, state, reason, next_offset from duplex.peers' -c 'table duplex.queue_status'",
                at(a)
            )],
        ),
        ("A stream as JSON:", vec![format!("{relay} tail {} --kafka {}", a.name(), lab.kafka().bootstrap())]),
        (
            "Kill a relay, write on both sides, start it again, and watch it catch up:",
            vec![ctl("kill relay1"), ctl("start relay1")],
        ),
        ("The relays' logs:", vec![format!("tail {} {}", a.relay().log().display(), b.relay().log().display())]),
    ];
    screen.heading("Go on by hand, in another terminal");
    for (what, lines) in commands {
        screen.line(what);
        for line in lines {
            screen.line(&format!("    {}", screen.look(Look::Bold, &line)));
        }
    }
}

/// A program by its plain name if the shell finds it, else by its path.
fn program(name: &str, folder: &Path) -> String {
    let found =
        std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|f| f.join(name).is_file()));
    if found { name.to_owned() } else { folder.join(name).display().to_string() }
}
