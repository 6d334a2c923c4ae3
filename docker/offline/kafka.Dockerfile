# Stands in for the official image apache/kafka:4.1.0 where no registry can be reached: the same release's jars (from
# Maven Central, scripts/kafka.sh) and an entrypoint that reads the same environment variables.
ARG DEBIAN_IMAGE=pg_duplex/offline-debian
FROM ${DEBIAN_IMAGE}
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends openjdk-17-jre-headless \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 1000 --user-group --home-dir /opt/kafka --shell /bin/bash appuser \
 && install -d -o appuser -g appuser /opt/kafka /var/lib/kafka /var/lib/kafka/data
COPY jars /opt/kafka/libs
COPY kafka-entrypoint.sh /usr/local/bin/kafka-entrypoint.sh
USER appuser
VOLUME /var/lib/kafka/data
EXPOSE 9092
ENTRYPOINT ["kafka-entrypoint.sh"]
