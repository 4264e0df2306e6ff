"""Personal links end some day, and a click that is sent again is known by its name.

Links from before end 90 days after the upgrade. No judgement is touched.
"""

import datetime

import sqlalchemy as sa
from alembic import op

revision = "links_end"
down_revision = "first_tables"


def upgrade() -> None:
    op.add_column("annotators", sa.Column("expires", sa.String(32)))
    op.add_column("judgements", sa.Column("click", sa.String(64)))
    op.create_index("judgements_once", "judgements", ["annotator", "task", "click"], unique=True)
    end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=90)
    annotators = sa.table("annotators", sa.column("token"), sa.column("expires"))
    with_link = annotators.update().where(annotators.c.token.is_not(None))
    op.execute(with_link.values(expires=end.isoformat(timespec="seconds")))
