"""dlt as its documentation configures it for a table with a key: arrow tables, upserted. A peer of make bench."""

import os

import dlt
from dlt.sources.sql_database import sql_table

athletes = sql_table(
    credentials=os.environ["APP"].replace("postgresql:", "postgresql+psycopg2:"),
    schema="public", table="User", included_columns=["uuid", "name"], backend="pyarrow")
athletes.apply_hints(table_name="athlete", primary_key="uuid",
                     write_disposition={"disposition": "merge", "strategy": "upsert"})
pipeline = dlt.pipeline("athletes", destination=dlt.destinations.postgres(os.environ["WAREHOUSE"]),
                        dataset_name="analytics")
pipeline.run(athletes)
