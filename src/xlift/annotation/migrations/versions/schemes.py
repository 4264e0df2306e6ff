"""Who has read the guidelines, who may go on although the practice went badly, and a secret for completion codes.

Whoever has rated before has read them. No judgement is touched.
"""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "schemes"
down_revision = "links_end"


def upgrade() -> None:
    op.add_column("annotators", sa.Column("read", sa.String(32)))
    op.add_column("annotators", sa.Column("admitted", sa.String(32)))
    annotators = sa.table("annotators", sa.column("id"), sa.column("created"), sa.column("read"))
    judgements = sa.table("judgements", sa.column("annotator"))
    began = annotators.c.id.in_(sa.select(judgements.c.annotator))
    op.execute(annotators.update().where(began).values(read=annotators.c.created))
    settings = sa.table("settings", sa.column("name"), sa.column("value"))
    op.execute(settings.insert().values(name="secret", value=f'"{secrets.token_hex(16)}"'))
