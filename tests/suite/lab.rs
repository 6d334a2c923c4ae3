//! The lab itself: it starts, and leaves nothing behind.

use anyhow::Result;
use duplex_lab::{Lab, topic};

#[tokio::test]
async fn clusters_and_kafka_come_up_and_stop() -> Result<()> {
    let lab = Lab::builder().own_clusters().own_kafka().relays_stopped().start().await?;
    let folder = lab.folder().to_owned();
    for node in lab.nodes() {
        assert_eq!(node.one("select name from duplex.node").await?, node.name());
    }
    assert_eq!(topic::end(lab.kafka(), lab.node(0).name()).await?, 0);
    lab.kafka().kill()?;
    lab.kafka().start().await?;
    lab.node(0).cluster().crash()?;
    lab.node(0).cluster().start().await?;
    drop(lab);
    assert!(!folder.exists());
    Ok(())
}
