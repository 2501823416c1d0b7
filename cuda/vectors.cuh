// The vectors of a layer [.., C], one after another. The host copies them in this order, and checks that it is the same:
// VECTORS in rwkv_cli/engine/gpu/weights.py.
#pragma once

enum Vector {
    ATT_X_R, ATT_X_K, ATT_X_V, ATT_X_W, ATT_X_A, ATT_X_G,  // token shift of each matrix of the time mix
    ATT_W0, ATT_A0, ATT_V0, ATT_K_K, ATT_K_A, ATT_R_K,
    ATT_LN_X_WEIGHT, ATT_LN_X_BIAS,
    LN1_WEIGHT, LN1_BIAS, LN2_WEIGHT, LN2_BIAS,
    FFN_X_K,
};
