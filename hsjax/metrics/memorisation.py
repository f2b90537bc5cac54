"""Are the samples copies of training images? Nearest neighbours among training and test images."""

import numpy as np

from hsjax.metrics.frechet import finite_rows

_ROWS = 250  # compared with all others at a time: 60 MB of distances for 60,000


@np.errstate(under="ignore")
def share_nearest_to_training(features, train, test, *, are_test: bool = False) -> float:
    """Share of rows that are nearer to some training image than to any test image.

    It depends on how many training and test images there are: compare it with the share of the test
    images themselves. Copies of training images are almost always nearer to the training set.

    Args:
      features: of the images in question, [m, d].
      train: features of the training images, [count, d].
      test: features of the test images, [count, d].
      are_test: `features` are the first m rows of `test`; no row is then compared with itself.

    Returns:
      A fraction in [0, 1]; a tie counts as one half.

    Raises:
      ValueError: a NaN or an infinity.
    """
    rows, train, test = (
        finite_rows(x, name)
        for x, name in ((features, "the features"), (train, "the training"), (test, "the test"))
    )
    centre = test.mean(axis=0)  # about which single precision has the most digits
    rows, train, test = (np.asarray(x - centre, np.float32) for x in (rows, train, test))
    nearer = 0.0
    for start in range(0, len(rows), _ROWS):
        block = rows[start : start + _ROWS]
        from_train, from_test = (np.sum(x * x, axis=1) - 2 * block @ x.T for x in (train, test))
        if are_test:
            index = np.arange(len(block))
            from_test[index, start + index] = np.inf
        nearest = train[from_train.argmin(axis=1)], test[from_test.argmin(axis=1)]
        # Not from the products, whose rounding would decide a tie.
        gap = np.subtract(*(np.sum((block - x) ** 2, axis=1) for x in nearest))
        nearer += np.sum(gap < 0) + 0.5 * np.sum(gap == 0)
    return float(nearer / len(rows))
