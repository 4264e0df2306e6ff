"""The tables of the first version. A change of the tables is a new file here, never an edit of this one."""

import sqlalchemy as sa
from alembic import op

revision = "first_tables"
down_revision = None


def upgrade() -> None:
    _annotators_and_tasks()
    _work()
    op.create_table(
        "settings", sa.Column("name", sa.String(32), primary_key=True), sa.Column("value", sa.Text, nullable=False)
    )


def _annotators_and_tasks() -> None:
    op.create_table(
        "annotators",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(200), nullable=False, unique=True),
        sa.Column("token", sa.String(64), unique=True),
        sa.Column("languages", sa.Text, nullable=False),
        sa.Column("interface", sa.String(8), nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
    )
    op.create_table(
        "tasks",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("language", sa.String(32), nullable=False),
        sa.Column("reply_language", sa.String(32), nullable=False),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("response", sa.String(32), nullable=False),
        sa.Column("shown", sa.Text, nullable=False),
        sa.Column("expected", sa.Text),
        sa.UniqueConstraint("run", "step", "prompt", "response"),
    )


def _work() -> None:
    op.create_table(
        "assignments",
        sa.Column("annotator", sa.Integer, sa.ForeignKey("annotators.id"), primary_key=True),
        sa.Column("task", sa.String(16), sa.ForeignKey("tasks.id"), primary_key=True),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("done", sa.Boolean, nullable=False),
        sa.Column("skips", sa.Integer, nullable=False),
        sa.Column("opened", sa.String(32)),
    )
    op.create_table(
        "judgements",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("annotator", sa.Integer, sa.ForeignKey("annotators.id"), nullable=False),
        sa.Column("task", sa.String(16), sa.ForeignKey("tasks.id"), nullable=False),
        sa.Column("field", sa.String(16), nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("guidelines", sa.String(8), nullable=False),
        sa.Column("interface", sa.String(8), nullable=False),
        sa.Column("time", sa.String(32), nullable=False),
    )
    op.create_index("judgements_of", "judgements", ["annotator", "task"])
    op.create_table(
        "imported",
        sa.Column("run", sa.Text, primary_key=True),
        sa.Column("step", sa.Integer, primary_key=True),
        sa.Column("prompt", sa.Text, primary_key=True),
        sa.Column("facet", sa.String(32), primary_key=True),
        sa.Column("rater", sa.String(200), primary_key=True),
        sa.Column("record", sa.Text, nullable=False),
    )
