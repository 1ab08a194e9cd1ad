"""Other libraries' ways to do what our kernels do: built once from arrays, then called; a call returns its results.

Every class takes (arrays, threads) and returns a tuple of arrays from __call__.
"""

import faiss
import numkong
import numpy as np

TOP = 10


class FaissTop:
    """(scores, ids) of the ten nearest rows by one of faiss's flat indexes, of the folded or packed vectors given."""

    def __init__(self, arrays: dict[str, np.ndarray], threads: int, index: faiss.Index | faiss.IndexBinary) -> None:
        faiss.omp_set_num_threads(threads)
        self.index, self.queries, self.threads = index, arrays["queries"], threads
        index.add(arrays["rows"])

    def __call__(self) -> tuple[np.ndarray, ...]:
        faiss.omp_set_num_threads(self.threads)
        return tuple(self.index.search(self.queries, TOP))


class FaissFloat(FaissTop):
    """Inner products of float32 rows."""

    def __init__(self, arrays: dict[str, np.ndarray], threads: int) -> None:
        super().__init__(arrays, threads, faiss.IndexFlatIP(arrays["rows"].shape[1]))


class FaissInt8(FaissTop):
    """Inner products of int8 rows, given as int8, with float32 queries: faiss takes and keeps one byte a dimension."""

    def __init__(self, arrays: dict[str, np.ndarray], threads: int) -> None:
        kind = faiss.ScalarQuantizer.QT_8bit_direct_signed
        index = faiss.IndexScalarQuantizer(arrays["rows"].shape[1], kind, faiss.METRIC_INNER_PRODUCT)
        floats = {name: array.astype(np.float32) for name, array in arrays.items()}
        super().__init__(floats, threads, index)


class FaissBinary(FaissTop):
    """Hamming distances of packed bits."""

    def __init__(self, arrays: dict[str, np.ndarray], threads: int) -> None:
        super().__init__(arrays, threads, faiss.IndexBinaryFlat(8 * arrays["rows"].shape[1]))


class NumkongInt8Pairs:
    """All dot products of int8 queries and rows by AMX; the rows are packed beforehand, the output is kept."""

    def __init__(self, arrays: dict[str, np.ndarray], threads: int) -> None:
        assert threads == 1
        self.queries, self.packed = arrays["queries"], numkong.dots_pack(arrays["rows"])

    def __call__(self) -> tuple[np.ndarray, ...]:
        return (np.asarray(numkong.dots_packed(self.queries, self.packed)),)


class FaissPq:
    """(scores, ids) of the ten best rows by 4-bit codes in faiss's fast scan, with the codebooks given."""

    def __init__(self, arrays: dict[str, np.ndarray], threads: int) -> None:
        faiss.omp_set_num_threads(threads)
        dimensions, parts = arrays["rows"].shape[1], arrays["codebooks"].shape[0]
        self.index = faiss.index_factory(dimensions, f"PQ{parts}x4fs", faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(arrays["codebooks"].ravel(), self.index.pq.centroids)
        self.index.is_trained = True
        self.index.add(arrays["rows"])
        self.queries = arrays["queries"]

    def __call__(self) -> tuple[np.ndarray, ...]:
        return tuple(self.index.search(self.queries, TOP))


class NumkongMaxsim:
    """Scores of one query's tokens with every document's, packed beforehand; unit tokens, so that its sum of angular
    distances is the number of tokens less the score."""

    def __init__(self, arrays: dict[str, np.ndarray], threads: int) -> None:
        assert threads == 1
        self.query = self.pack(arrays["queries"])
        self.documents = [self.pack(document) for document in arrays["documents"]]
        self.tokens = len(arrays["queries"])

    @staticmethod
    def pack(tokens: np.ndarray) -> object:
        """bfloat16 as numkong wants it."""
        return numkong.maxsim_pack(numkong.Tensor(tokens).astype("bfloat16"), dtype="bf16")

    def __call__(self) -> tuple[np.ndarray, ...]:
        distances = [numkong.maxsim_packed(self.query, document) for document in self.documents]
        return (self.tokens - np.array(distances),)
