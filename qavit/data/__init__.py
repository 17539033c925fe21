"""Whole data sets: a map for every question, on one machine or many, and the maps read back.

    import qavit.data

    qavit.data.run("v2_OpenEnded_mscoco_val2014_questions.json", "maps", images="val2014", model="qavit-base2")
    for row in qavit.data.read_maps("maps"):
        print(row.id, row.map)

Needs ``pip install "qavit[data]"``; the Ray engine ``"qavit[ray]"``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
