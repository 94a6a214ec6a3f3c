"""Approvals: what exactly a person is asked, who may answer, and how an answer becomes final.

``binding`` hashes what will run, ``routing`` is the pure state machine of a request, ``describing`` shows a
request to people, ``approvers`` ask inline or send word.
"""
