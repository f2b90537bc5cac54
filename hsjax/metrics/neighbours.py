"""Do the classes sit together in the latent space? k-NN (section 4.3) and linear accuracy."""

import warnings

import numpy as np

from hsjax.metrics.frechet import finite_rows


@np.errstate(under="ignore")
def knn_accuracy(bank, bank_labels, queries, query_labels, k: int = 5) -> float:
    """Share of queries whose k nearest neighbours in the bank vote for the right class.

    Args:
      bank: [count, n], usually the latent means of the train split.
      bank_labels: integers [count].
      queries: [m, n], usually those of the test split.
      query_labels: integers [m].
      k: number of neighbours, at most count.

    Returns:
      A fraction in [0, 1].

    Raises:
      ValueError: k > count, or a NaN or an infinity.
    """
    from sklearn.neighbors import KNeighborsClassifier  # a second to import

    bank, queries = finite_rows(bank, "the bank"), finite_rows(queries, "the queries")
    classifier = KNeighborsClassifier(k, algorithm="brute").fit(bank, bank_labels)
    return float(classifier.score(queries, query_labels))


@np.errstate(under="ignore")
def linear_probe_accuracy(bank, bank_labels, queries, query_labels) -> float:
    """Share of queries that a multinomial logistic regression on the bank puts in the right class.

    Latents are standardised by the bank's mean and deviation, and the regression (scikit-learn's,
    with its default ridge) stops after 100 iterations at the latest. Where the k-NN accuracy asks
    for classes that are near, this one asks for classes that a plane divides. If the bank has
    one class, every prediction is that class.

    Args:
      bank: [count, n], usually the latent means of the train split.
      bank_labels: integers [count].
      queries: [m, n], usually those of the test split.
      query_labels: integers [m].

    Returns:
      A fraction in [0, 1], always the same for the same arguments.

    Raises:
      ValueError: a NaN or an infinity.
    """
    from sklearn.exceptions import ConvergenceWarning  # a second to import
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # scikit-learn's own

    bank, queries = finite_rows(bank, "the bank"), finite_rows(queries, "the queries")
    bank_labels, query_labels = np.asarray(bank_labels), np.asarray(query_labels)
    if np.all(bank_labels == bank_labels[0]):
        return float(np.mean(query_labels == bank_labels[0]))

    mean, deviation = bank.mean(axis=0, dtype=np.float64), bank.std(axis=0, dtype=np.float64)
    deviation = np.where(deviation > 0, deviation, 1.0)
    # A query may lie any number of the bank's deviations away; float32 takes 1e38.
    bank, queries = (
        np.clip((x - mean) / deviation, -1e9, 1e9).astype(np.float32) for x in (bank, queries)
    )
    # Its products are too small to share: a second thread mostly waits, and a sum's last digits
    # (with them, the accuracy's) would depend on the number of cores.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last digits don't matter
        regression = LogisticRegression(max_iter=100).fit(bank, bank_labels)
        return float(regression.score(queries, query_labels))
