"""A trainer whose losses are tampered with at given steps."""

from helpers.trainers import make

from fogzo.training.tasks import Classification


class Tampered(Classification):
    """The loss goes through ``change`` in the training steps ``at`` (from 1), once a step."""

    def __init__(self, data, at, change):
        super().__init__(data)
        self.at, self.change, self.trainer = at, change, None

    def loss(self, model, batch):
        loss = super().loss(model, batch)
        return self.change(loss) if self.trainer.step + 1 in self.at else loss


def tampered(at, change, estimator="ste", **options):
    trainer = make(estimator, **options)
    trainer.task = Tampered(trainer.task.data, at, change)
    trainer.task.trainer = trainer
    return trainer
