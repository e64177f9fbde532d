"""The script that everybody writes first: pandas and execute_values. A peer of make bench PEERS=1."""

import os

import pandas as pd
import psycopg2
from psycopg2.extras import execute_values

with psycopg2.connect(os.environ["APP"]) as app:
    athletes = pd.read_sql('SELECT uuid, name FROM public."User"', app)

with psycopg2.connect(os.environ["WAREHOUSE"]) as warehouse, warehouse.cursor() as cursor:
    execute_values(cursor, """
        INSERT INTO analytics.athlete_dim (athlete_uuid, full_name, source_synced_at)
        VALUES %s
            ON CONFLICT (athlete_uuid) DO UPDATE
           SET full_name = EXCLUDED.full_name, source_synced_at = EXCLUDED.source_synced_at
        """, list(athletes.itertuples(index=False, name=None)), template="(%s, %s, now())", page_size=1000)
